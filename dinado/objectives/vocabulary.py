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
    """

    log_p: Tensor
    score: Tensor
    log_mean: Tensor
    maximum: Tensor | None

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

    Returns:
        Statistics with gradients to ``score_hidden_BTE`` and the score head.
    """
    keep_BT = mask_BT.bool()
    base_ND, score_NE, tokens_N = base_hidden_BTD[keep_BT], score_hidden_BTE[keep_BT], tokens_BT[keep_BT]
    parts = [
        checkpoint(
            _reduce,
            base_ND[rows],
            base_head,
            score_NE[rows],
            score_head,
            tokens_N[rows],
            link,
            maximum,
            support,
            use_reentrant=False,
        )
        for rows in _chunks(len(tokens_N), base_head)
    ]
    filled = [_scatter(torch.cat(column), keep_BT) for column in zip(*parts, strict=True)]
    log_p, score, log_mean = filled[:3]
    return VocabularyStatistics(log_p, score, log_mean, filled[3] if maximum else None)


def token_log_probs(hidden_BTD: Tensor, head: Head, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log softmax(head(hidden))[token], ``[B, T]`` float32, 0 on padding; chunked like the statistics."""
    keep_BT = mask_BT.bool()
    hidden_ND, tokens_N = hidden_BTD[keep_BT], tokens_BT[keep_BT]
    if not _is_trained(head):
        return _scatter(_FrozenHeadLogProbs.apply(hidden_ND, tokens_N, head), keep_BT)
    parts = [
        checkpoint(_log_probs, hidden_ND[rows], head, tokens_N[rows], use_reentrant=False)
        for rows in _chunks(len(tokens_N), head)
    ]
    return _scatter(torch.cat(parts), keep_BT)


class _FrozenHeadLogProbs(torch.autograd.Function):
    """Log-probabilities of tokens, with their derivative d log q / dh = (W[token] - q W) * scale formed on the way.

    Nothing is recomputed in the backward pass: two products with the vocabulary instead of three.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, tokens_N: Tensor, head: Head) -> Tensor:
        log_q_N = torch.empty(len(tokens_N), dtype=torch.float32, device=hidden_ND.device)
        slope_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for rows in _chunks(len(tokens_N), head):
            tokens_n = tokens_N[rows]
            logits_nV = head.logits(hidden_ND[rows])
            log_z_n1 = logits_nV.logsumexp(1, keepdim=True)
            log_q_N[rows] = (logits_nV.gather(1, tokens_n[:, None]) - log_z_n1)[:, 0]
            if slope_ND is not None:
                q_nV = logits_nV.sub_(log_z_n1).exp_().to(head.weight_VD.dtype)
                slope_ND[rows] = ((head.weight_VD[tokens_n] - q_nV @ head.weight_VD) * head.scale).to(slope_ND.dtype)
        if slope_ND is not None:
            ctx.save_for_backward(slope_ND)
        return log_q_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        (slope_ND,) = ctx.saved_tensors
        return (grad_N[:, None] * slope_ND).to(slope_ND.dtype), None, None


def _log_probs(hidden_ND: Tensor, head: Head, tokens_N: Tensor) -> Tensor:
    logits_NV = head.logits(hidden_ND)
    return logits_NV.gather(1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(1)


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
    link: Link,
    maximum: bool,
    support: int,
) -> tuple[Tensor, ...]:
    with torch.no_grad():
        log_p_NV = base_head.logits(base_ND).log_softmax(1)
    score_NV = apply_link(link, score_head.logits(score_NE), log_p_NV)
    column = tokens_N[:, None]
    reduced = (
        log_p_NV.gather(1, column)[:, 0],
        score_NV.gather(1, column)[:, 0],
        # With a policy's log-ratio the normaliser is exactly 1; forming it would only add rounding.
        log_p_NV.new_zeros(len(tokens_N)) if link == "log_ratio" else (log_p_NV + score_NV).logsumexp(1),
    )
    if not maximum:
        return reduced
    if support and support < score_NV.shape[1]:
        score_NV = score_NV.gather(1, log_p_NV.topk(support, dim=1).indices)
    return *reduced, score_NV.amax(1)


def _scatter(values_N: Tensor, keep_BT: Tensor) -> Tensor:
    return torch.zeros(keep_BT.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(keep_BT, values_N)
