"""Everything a loss needs from the vocabulary axis, per response token, and nothing kept of that axis.

A method scores every next token v with s_i(v); the controlled model is q_i(v) proportional to p_i(v) exp(s_i(v)).
Losses need four numbers per token (see :class:`VocabularyStatistics`). Logits are formed for a chunk of tokens at a
time and recomputed in the backward pass, so no ``[B, T, V]`` tensor outlives its chunk.

Axes: N response tokens (padding left out), B rollouts, T response tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Link = Literal["log_ratio", "identity", "logsigmoid"]
CHUNK_ELEMENTS = 8_000_000
"""Logits formed at once; 32 MB a tensor in float32."""


class Head(NamedTuple):
    """A linear map from states to the vocabulary: ``scale * (h @ weight.T + bias)``."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """float32 logits ``[N, V]``."""
        return F.linear(hidden_ND, self.weight_VD, self.bias_V).float() * self.scale


class VocabularyStatistics(NamedTuple):
    """Per response token, float32, ``[B, T]`` with 0 on padding.

    Attributes:
        log_p: log p_i(y), the base's log-probability of the sampled token.
        score: s_i(y).
        log_mean: log E_{v ~ p_i}[exp s_i(v)], the log-normaliser of q_i.
        maximum: max of s_i over the support, the L-infinity norm in log space; None when it was not asked for.
        candidate_log_q: log q_i of the K tokens that were asked about, ``[B, T, K]``; None when none were.
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
        base_hidden_BTD, base_head: give the base logits.
        score_hidden_BTE, score_head: give the score logits u.
        tokens_BT, mask_BT: sampled tokens, and where they are real.
        link: how u becomes a score. ``log_ratio``: u are a policy's logits and s = log softmax(u) - log p;
            ``identity``: s = u; ``logsigmoid``: s = log sigmoid(u).
        maximum: reduce to the maximum as well.
        support: take the maximum over this many likeliest tokens under p; 0 takes the whole vocabulary.
        candidate_BTK: tokens whose log q is wanted besides.

    Returns:
        Statistics with gradients to ``score_hidden_BTE`` and the score head.
    """
    keep_BT = mask_BT.bool()
    base_ND, score_NE, tokens_N = base_hidden_BTD[keep_BT], score_hidden_BTE[keep_BT], tokens_BT[keep_BT]
    candidate_NK = None if candidate_BTK is None else candidate_BTK[keep_BT]
    parts = [
        checkpoint(
            _reduce,
            base_ND[rows],
            base_head,
            score_NE[rows],
            score_head,
            tokens_N[rows],
            None if candidate_NK is None else candidate_NK[rows],
            link,
            maximum,
            support,
            use_reentrant=False,
        )
        for rows in _chunks(len(tokens_N), base_head)
    ]
    filled = [_scatter(torch.cat(column), keep_BT) for column in zip(*parts, strict=True)]
    log_p, score, log_mean, *more = filled
    return VocabularyStatistics(
        log_p, score, log_mean, more.pop(0) if maximum else None, more.pop(0) if candidate_BTK is not None else None
    )


def token_log_probs(hidden_BTD: Tensor, head: Head, tokens_BTK: Tensor, mask_BT: Tensor) -> Tensor:
    """log softmax(head(hidden))[token] of K tokens at each position, ``[B, T, K]`` float32; 0 on padding.

    Chunked like the statistics.
    """
    keep_BT = mask_BT.bool()
    hidden_ND, tokens_NK = hidden_BTD[keep_BT], tokens_BTK[keep_BT]
    if not _is_trained(head):
        return _scatter(_FrozenHeadLogProbs.apply(hidden_ND, tokens_NK, head), keep_BT)
    parts = [
        checkpoint(_log_probs, hidden_ND[rows], head, tokens_NK[rows], use_reentrant=False)
        for rows in _chunks(len(tokens_NK), head)
    ]
    return _scatter(torch.cat(parts), keep_BT)


class _FrozenHeadLogProbs(torch.autograd.Function):
    """Log-probabilities of K tokens a position, with what their derivatives share formed on the way.

    d log q(v) / dh = (W[v] - q W) * scale: q W is kept for each position, rows of W are looked up. Nothing is
    recomputed in the backward pass: two products with the vocabulary instead of three.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, tokens_NK: Tensor, head: Head) -> Tensor:
        log_q_NK = torch.empty(tokens_NK.shape, dtype=torch.float32, device=hidden_ND.device)
        mean_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for rows in _chunks(len(tokens_NK), head):
            logits_nV = head.logits(hidden_ND[rows])
            log_z_n1 = logits_nV.logsumexp(1, keepdim=True)
            log_q_NK[rows] = logits_nV.gather(1, tokens_NK[rows]) - log_z_n1
            if mean_ND is not None:
                mean_ND[rows] = logits_nV.sub_(log_z_n1).exp_().to(head.weight_VD.dtype) @ head.weight_VD
        if mean_ND is not None:
            ctx.save_for_backward(mean_ND, tokens_NK)
            ctx.head = head
        return log_q_NK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, None, None]:
        mean_ND, tokens_NK = ctx.saved_tensors
        weight_VD, scale = ctx.head.weight_VD, ctx.head.scale
        grad_ND = F.embedding_bag(tokens_NK, weight_VD, per_sample_weights=grad_NK.to(weight_VD.dtype), mode="sum")
        grad_ND = grad_ND.float() - grad_NK.sum(1, keepdim=True) * mean_ND.float()
        return (grad_ND * scale).to(mean_ND.dtype), None, None


def _log_probs(hidden_ND: Tensor, head: Head, tokens_NK: Tensor) -> Tensor:
    logits_NV = head.logits(hidden_ND)
    return logits_NV.gather(1, tokens_NK) - logits_NV.logsumexp(1, keepdim=True)


def _is_trained(head: Head) -> bool:
    return head.weight_VD.requires_grad or (head.bias_V is not None and head.bias_V.requires_grad)


def _chunks(num_tokens: int, head: Head) -> Iterator[slice]:
    """Rows whose logits are formed at once."""
    rows = max(1, CHUNK_ELEMENTS // head.weight_VD.shape[0])
    return (slice(start, start + rows) for start in range(0, num_tokens, rows))


def apply_link(link: Link, score_logits_NV: Tensor, log_p_NV: Tensor) -> Tensor:
    """Scores s ``[N, V]`` from score logits, see :func:`vocabulary_statistics`."""
    if link == "log_ratio":
        return score_logits_NV.log_softmax(1) - log_p_NV
    return F.logsigmoid(score_logits_NV) if link == "logsigmoid" else score_logits_NV


def _reduce(
    base_ND: Tensor,
    base_head: Head,
    score_NE: Tensor,
    score_head: Head,
    tokens_N: Tensor,
    candidate_NK: Tensor | None,
    link: Link,
    maximum: bool,
    support: int,
) -> tuple[Tensor, ...]:
    with torch.no_grad():
        log_p_NV = base_head.logits(base_ND).log_softmax(1)
    score_NV = apply_link(link, score_head.logits(score_NE), log_p_NV)
    column = tokens_N[:, None]
    reduced = [
        log_p_NV.gather(1, column)[:, 0],
        score_NV.gather(1, column)[:, 0],
        # With a policy's log-ratio the normaliser is exactly 1; forming it would only add rounding.
        log_p_NV.new_zeros(len(tokens_N)) if link == "log_ratio" else (log_p_NV + score_NV).logsumexp(1),
    ]
    if maximum:
        within_NV = score_NV
        if support and support < score_NV.shape[1]:
            within_NV = score_NV.gather(1, log_p_NV.topk(support, dim=1).indices)
        reduced.append(within_NV.amax(1))
    if candidate_NK is not None:
        log_q_NK = log_p_NV.gather(1, candidate_NK) + score_NV.gather(1, candidate_NK) - reduced[2][:, None]
        reduced.append(log_q_NK)
    return tuple(reduced)


def _scatter(values_N: Tensor, keep_BT: Tensor) -> Tensor:
    """``[N, ...]`` to ``[B, T, ...]``, 0 on padding."""
    filled = torch.zeros(*keep_BT.shape, *values_N.shape[1:], dtype=values_N.dtype, device=values_N.device)
    return filled.masked_scatter(keep_BT.reshape(*keep_BT.shape, *[1] * (values_N.ndim - 1)), values_N)
