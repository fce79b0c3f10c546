"""The loss of a method that predicts R: the terms of dinado/objectives with the weights of the settings.

Axes: B rollouts, T response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinado.objectives.logspace import at_least_float
from dinado.objectives.losses import against_oracle, forward_consistency, loss_masks, telescoped, value_ce
from dinado.objectives.values import TokenValues
from workbench.settings.objective import ObjectiveSettings


@dataclass
class ValueLoss:
    """Terms of the loss of each rollout, ``[B]`` in nats, before weighting over rollouts.

    Attributes:
        total_B: the sum that is minimised.
        consistency_B: the published f_KL, whichever divergence is trained.
        num_links_B: number of pairs of neighbouring values in it.
    """

    total_B: Tensor
    token_ce_B: Tensor
    terminal_ce_B: Tensor
    path_B: Tensor
    lookahead_B: Tensor
    likelihood_B: Tensor
    consistency_B: Tensor
    num_links_B: Tensor


def value_loss(
    values: TokenValues,
    score_B: Tensor,
    mask_BT: Tensor,
    finished_B: Tensor | None,
    objective: ObjectiveSettings,
    log_root_B: Tensor | None = None,
    telescopes: bool = False,
    lookahead_B: Tensor | None = None,
    likelihood_B: Tensor | None = None,
    log_prompt_B: Tensor | None = None,
    misplaced: bool = True,
    lookahead_share: float = 1.0,
) -> ValueLoss:
    """Compute the loss of every rollout.

    Args:
        score_B: oracle scores C.
        mask_BT: 1 where a response token is real, the end-of-sequence token included.
        finished_B: whether the last real token is the end of sequence; needed by the official masks only.
        log_root_B: log R(c) where it is known; otherwise the path starts from the first V.
        telescopes: whether the values are telescoped already (Hard), and so not bounded by 1.
        lookahead_B: the lookahead term, which needs more than values; None where it is not trained.
        likelihood_B: the negative log-likelihood of accepted rollouts; None where it is not trained.
        log_prompt_B: log of the value after the prompt's last token, where the first V is tied to it.
        misplaced: whether the method's published code misplaces its masks, so that ``official`` is not ``correct``.
        lookahead_share: what is left of the weight of the lookahead term.
    """
    oracle, consistency, path, lookahead = (
        objective.oracle,
        objective.consistency,
        objective.path,
        objective.lookahead,
    )
    rows_BT, links_BT = loss_masks(mask_BT, finished_B, objective.masks if misplaced else "correct")
    values = TokenValues(at_least_float(values.log_r_BT), at_least_float(values.log_v_BT))
    weights = (oracle.token_ce, oracle.terminal_ce, oracle.overflow)
    score_B1 = score_B[:, None].to(values.log_r_BT.dtype)
    direct = against_oracle(values.log_r_BT, score_B1, rows_BT, path.loss if telescopes else "bernoulli")
    path_B = torch.zeros_like(score_B1[:, 0])
    if path.weight:
        path_BT = telescoped(values, rows_BT, log_root_B)
        path_B = against_oracle(path_BT, score_B1, rows_BT, path.loss).weighted(*weights)
    linked = forward_consistency(
        values,
        links_BT,
        direction=consistency.direction,
        detach=consistency.detach,
        divergence=consistency.divergence,
        log_prompt_B=log_prompt_B,
    )
    total_B = direct.weighted(*weights) + path.weight * path_B + consistency.weight * linked.trained_B
    if oracle.value_ce:
        total_B = total_B + oracle.value_ce * value_ce(values.log_v_BT, score_B1, rows_BT)
    lookahead_B = torch.zeros_like(path_B) if lookahead_B is None else lookahead_B
    likelihood_B = torch.zeros_like(path_B) if likelihood_B is None else likelihood_B
    return ValueLoss(
        total_B=total_B + lookahead.weight * lookahead_share * lookahead_B + objective.likelihood.weight * likelihood_B,
        token_ce_B=direct.token_ce_B,
        terminal_ce_B=direct.terminal_ce_B,
        path_B=path_B,
        lookahead_B=lookahead_B,
        likelihood_B=likelihood_B,
        consistency_B=linked.published_B,
        num_links_B=linked.num_links_B,
    )
