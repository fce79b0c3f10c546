"""Statistics over the vocabulary axis that losses need, per response token.

A method scores every next token v with s_i(v); the controlled model is q_i(v) proportional to p_i(v) exp(s_i(v)).
Losses need four numbers per token (see :class:`VocabularyStatistics`). This module applies the reduction of
``dinado/objectives/reduction.py``, which keeps no tensor of the vocabulary axis, to the response tokens of a batch.

Axes: N response tokens (padding left out), B rollouts, T response tokens, V vocabulary, D and E widths.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dinado.objectives.reduction import Head, Link, reduce_vocabulary


class VocabularyStatistics(NamedTuple):
    """Statistics of each response token, float32, ``[B, T]`` with 0 on padding.

    Attributes:
        log_p: log p_i(y), the base's log-probability of the sampled token.
        score: s_i(y).
        log_mean: log E_{v ~ p_i}[exp s_i(v)], the log-normaliser of q_i.
        maximum: max of s_i over the support, the L-infinity norm in log space; None if it was not requested.
        candidate_log_q: log q_i of the K candidate tokens, ``[B, T, K]``; None if there are none.
    """

    log_p: Tensor
    score: Tensor
    log_mean: Tensor
    maximum: Tensor | None
    candidate_log_q: Tensor | None = None

    @property
    def log_q(self) -> Tensor:
        """log q_i(y) of the controlled model."""
        return self.log_p + self.score - self.log_mean


def vocabulary_statistics(
    base_hidden_BTD: Tensor,
    base_head: Head,
    score_hidden_BTE: Tensor,
    score_head: Head,
    tokens_BT: Tensor,
    mask_BT: Tensor,
    link: Link,
    *,
    maximum: bool = True,
    support: int = 0,
    candidate_BTK: Tensor | None = None,
) -> VocabularyStatistics:
    """Reduce base and score logits over the vocabulary.

    Args:
        base_hidden_BTD, base_head: states and head that give the base logits.
        score_hidden_BTE, score_head: states and head that give the score logits u.
        tokens_BT, mask_BT: sampled tokens, and where they are real.
        link: how u becomes a score. ``log_ratio``: u are a policy's logits and s = log softmax(u) - log p;
            ``identity``: s = u; ``logsigmoid``: s = log sigmoid(u).

        support: take the maximum over this many likeliest tokens under p; 0 takes the whole vocabulary.
        candidate_BTK: candidate tokens whose log q is computed as well.

    Returns:
        Statistics with gradients to ``score_hidden_BTE`` and the score head.
    """
    keep_BT = mask_BT.bool()
    tokens_BTK = tokens_BT[..., None] if candidate_BTK is None else torch.cat([tokens_BT[..., None], candidate_BTK], -1)
    reduced = reduce_vocabulary(
        score_hidden_BTE[keep_BT],
        score_head,
        tokens_BTK[keep_BT],
        link,
        (base_hidden_BTD[keep_BT], base_head),
        maximum=maximum,
        support=support,
    )
    log_p_BTK, score_BTK, log_mean_BT, maximum_BT = (_scatter(values_N, keep_BT) for values_N in reduced)
    candidate_log_q = None
    if candidate_BTK is not None:
        candidate_log_q = log_p_BTK[..., 1:] + score_BTK[..., 1:] - log_mean_BT[..., None]
    return VocabularyStatistics(
        log_p_BTK[..., 0], score_BTK[..., 0], log_mean_BT, maximum_BT if maximum else None, candidate_log_q
    )


def token_log_probs(hidden_BTD: Tensor, head: Head, tokens_BTK: Tensor, mask_BT: Tensor) -> Tensor:
    """Compute log softmax(head(hidden))[token] of K tokens at each position, ``[B, T, K]`` float32; 0 on padding."""
    keep_BT = mask_BT.bool()
    return _scatter(reduce_vocabulary(hidden_BTD[keep_BT], head, tokens_BTK[keep_BT], "log_ratio").score_NK, keep_BT)


def _scatter(values_N: Tensor, keep_BT: Tensor) -> Tensor:
    """Scatter ``[N, ...]`` to ``[B, T, ...]``, 0 on padding."""
    filled = torch.zeros(*keep_BT.shape, *values_N.shape[1:], dtype=values_N.dtype, device=values_N.device)
    return filled.masked_scatter(keep_BT.reshape(*keep_BT.shape, *[1] * (values_N.ndim - 1)), values_N)
