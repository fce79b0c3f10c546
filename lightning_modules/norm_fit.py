"""Fit the norm head to stored rollouts before the policy moves, so that it can say at once which tokens help.

A policy learns where to act from the difference between the values before and after a token. As long as the norm head
knows nothing that difference is noise. The base's states are frozen, so one pass over the rollouts gives everything
the head can read, and fitting it costs seconds. Axes: B rollouts, T response tokens, D width.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dinado.models.oracle_network import NormHead
from dinado.models.scores import adapters
from dinado.objectives.losses import oracle_loss
from dinado.objectives.values import TokenValues, log_beta
from dinado.seeding import derive_seed, generator
from lightning_modules.base import OracleMethod

if TYPE_CHECKING:
    from datamodules.rollout_datamodule import RolloutDataModule

log = logging.getLogger(__name__)

MOST_ROLLOUTS = 4096
HELD_OUT = 8
"""One prompt in this many is kept out, and the head is taken from where it predicts those best."""
BATCH = 64
LEARNING_RATE = 1e-3


class States(NamedTuple):
    """Rollouts as the norm head sees them."""

    hidden_BTD: Tensor
    mask_BT: Tensor
    score_B: Tensor
    root_B: Tensor | None

    def rows(self, index_B: Tensor) -> States:
        """Some of the rollouts."""
        root_B = None if self.root_B is None else self.root_B[index_B]
        return States(self.hidden_BTD[index_B], self.mask_BT[index_B], self.score_B[index_B], root_B)


def fit_norm(method: OracleMethod, data: RolloutDataModule, steps: int) -> None:
    """Train ``method.norm_head`` alone for ``steps`` AdamW steps on the rollouts of ``data``; in place.

    At the start q = p, so the value after a token is the norm before it: the loss is the method's own with zero scores.
    """
    head = method.norm_head
    if head is None or not len(data.rows):
        return
    seed = method.config.seed
    order = torch.randperm(len(data.rows), generator=generator(seed, "norm fit"))[:MOST_ROLLOUTS].numpy()
    prompts = data.rows.prompt_index_N[order]
    held_out = np.isin(prompts, np.unique(prompts)[::HELD_OUT])
    if held_out.all():
        held_out[: len(held_out) // 2] = False
    train, test = (_states(method, data, order[part]) for part in (~held_out, held_out))
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    stream = torch.Generator().manual_seed(derive_seed(seed, "norm fit batches"))
    untrained = best = float(_loss(method, head, test).detach())
    kept = copy.deepcopy(head.state_dict())
    for step in range(1, steps + 1):
        index_B = torch.randint(len(train.score_B), (BATCH,), generator=stream).to(train.score_B.device)
        optimizer.zero_grad()
        _loss(method, head, train.rows(index_B)).backward()
        optimizer.step()
        if step % 10 == 0 and (now := float(_loss(method, head, test).detach())) < best:
            best, kept = now, copy.deepcopy(head.state_dict())
    head.load_state_dict(kept)
    log.info("norm head fitted on %d rollouts: held-out loss %.3f -> %.3f", len(train.score_B), untrained, best)


def _loss(method: OracleMethod, head: NormHead, states: States) -> Tensor:
    log_beta_BT = log_beta(head(states.hidden_BTD), states.root_B)
    values = TokenValues(log_beta_BT, log_beta_BT)
    weights = method.loss_weights
    terms = oracle_loss(values, states.score_B, states.mask_BT, None, weights)
    return (terms.token_ce_B + weights.regulariser * terms.consistency_B).mean()


@torch.no_grad()
def _states(method: OracleMethod, data: RolloutDataModule, rows_N: np.ndarray) -> States:
    """Base states of some rollouts, padded to one length."""
    rows_N = rows_N[np.argsort(data.rows.prompt_index_N[rows_N], kind="stable")]
    hidden, masks, scores, roots = [], [], [], []
    with adapters(method.base, on=False):
        for start in range(0, len(rows_N), BATCH):
            batch = data.train_batch(rows_N[start : start + BATCH], 0.0).to(method.base.device)
            hidden += list(method.base.states(batch).hidden_BTD)
            masks += list(batch.response_mask_BT)
            scores.append(batch.score_B)
            roots.append(batch.root_B)
    root_B = torch.cat(roots) if method.config.targets.root == "store" else None
    return States(
        pad_sequence(hidden, batch_first=True), pad_sequence(masks, batch_first=True), torch.cat(scores), root_B
    )
