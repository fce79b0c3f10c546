"""Log-probabilities of stored responses under sources that they were not drawn from, stored beside the texts.

Axes: B rollouts, T response tokens, N real tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.rollouts.proposal import Proposal
from dinado.rollouts.rollout_store import RolloutStore

CHUNK = 256
"""Number of positions whose logits are formed at once."""


@torch.no_grad()
def proposal_log_probs(base: BaseLM, proposal: Proposal, batch: RolloutBatch) -> Tensor:
    """Compute log s of every token ``[B, T]`` under a flattened or truncated base, 0 on padding.

    Tokens that it can never draw have -inf.
    """
    keep_BT = batch.response_mask_BT.bool()
    hidden_ND, tokens_N = base.states(batch).hidden_BTD[keep_BT], batch.response_BT[keep_BT]
    log_s_N = torch.cat(
        [
            proposal.log_probs(base.head.logits(hidden_nD).log_softmax(1)).gather(1, tokens_n[:, None])[:, 0]
            for hidden_nD, tokens_n in zip(hidden_ND.split(CHUNK), tokens_N.split(CHUNK), strict=True)
        ]
    )
    log_s_BT = torch.zeros(keep_BT.shape, dtype=log_s_N.dtype, device=log_s_N.device)
    return log_s_BT.masked_scatter(keep_BT, log_s_N)


def proposal_log_density(base: BaseLM, proposal: Proposal, batch: RolloutBatch) -> Tensor:
    """Compute log s of whole responses ``[B]`` under a flattened or truncated base; -inf if it can never draw one."""
    return proposal_log_probs(base, proposal, batch).double().sum(1)


def fill_densities(
    base: BaseLM,
    store: RolloutStore,
    source: str,
    log_density: Callable[[RolloutBatch], Tensor],
    *,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Store the log-probabilities of a store's texts under another source, for this process's share of the blocks.

    Args:
        source: name of the source on disk.
        log_density: returns log-probabilities ``[B]`` of whole responses under the source.

    Raises:
        StoreError: a file cannot be written.
    """
    with base.in_step():
        for block in range(rank, store.spec.num_blocks, world_size):
            if not store.has_density(source, block):
                log_s_B = log_density(store.text_batch(base, block))
                store.write_density(source, block, log_s_B.double().cpu().numpy())
