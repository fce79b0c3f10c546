"""Reduction over the vocabulary axis, with a backward pass for which no tensor of that axis is kept.

A score s_i(v) is a function of the score logits u_i(v) alone, so the derivative by u_i(v) of any loss on the reduced
numbers consists of a few entries (the requested tokens, the token of the maximum) and one dense row, q_i(v) ds/du,
times a number. With a frozen output matrix W that dense row is only ever multiplied by W, so the product is formed in
the forward pass, while the row is at hand, and the backward pass only needs lookups. A trained W needs the row itself,
which is recomputed.

Axes: N tokens, n of them at once, K requested tokens, V vocabulary, E width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Link = Literal["log_ratio", "identity", "logsigmoid"]
CHUNK_ELEMENTS = 8_000_000
"""Number of logits formed at once; a float32 tensor of them takes 32 MB."""


class Head(NamedTuple):
    """A map from states to the vocabulary: ``z = scale * (h @ weight.T + bias)``, or ``cap * tanh(z / cap)``."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Compute logits ``[N, V]`` in the weight's type; return them in float32 at least."""
        # Scaling the input saves a pass over the output.
        bias_V = None if self.bias_V is None else self.bias_V * self.scale
        logits_NV = F.linear((hidden_ND * self.scale).to(self.weight_VD.dtype), self.weight_VD, bias_V)
        logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        return logits_NV if self.cap is None else torch.tanh(logits_NV / self.cap) * self.cap

    def cap_slope(self, logits: Tensor) -> Tensor:
        """Return the derivative of capped logits by uncapped ones, ``1 - (logits / cap)^2``."""
        return 1 - (logits / self.cap).square() if self.cap is not None else torch.ones_like(logits)


class Reduced(NamedTuple):
    """Reduced numbers of the vocabulary axis, in float32 at least.

    Attributes:
        log_p_NK: log p of the requested tokens, without gradient; zero without a base.
        score_NK: their scores s; log q without a base.
        log_mean_N: log E_p[exp s]; the constant 0 with ``log_ratio``.
        maximum_N: largest score; zero if it was not requested, or without a base.
    """

    log_p_NK: Tensor
    score_NK: Tensor
    log_mean_N: Tensor
    maximum_N: Tensor


def reduce_vocabulary(
    score_NE: Tensor,
    score_head: Head,
    tokens_NK: Tensor,
    link: Link,
    base: tuple[Tensor, Head] | None = None,
    *,
    maximum: bool = False,
    support: int = 0,
) -> Reduced:
    """Reduce score logits, and base logits if there is a base, to numbers for K tokens per position.

    Args:
        link: see :func:`dinado.objectives.vocabulary.vocabulary_statistics`; without a base only ``log_ratio``.
        base: states ``[N, D]`` and head of the frozen base.

    Returns:
        Reduced numbers with gradients to ``score_NE`` and the score head.
    """
    weight_VE, bias_V, scale, cap = score_head
    plan = _Plan(scale, cap, base, tokens_NK, link, maximum and base is not None, support)
    return Reduced(*_Reduce.apply(score_NE, weight_VE, bias_V, plan))


class _Plan(NamedTuple):
    """The arguments of a pass other than the tensors that may need a gradient."""

    scale: float
    cap: float | None
    base: tuple[Tensor, Head] | None
    tokens_NK: Tensor
    link: Link
    maximum: bool
    support: int


class _Chunk(NamedTuple):
    """The result of a pass over the whole vocabulary for one chunk of tokens.

    Attributes:
        log_p_nK, score_nK, log_mean_n, maximum_n: see :class:`Reduced`.
        place_n: the token of the maximum, the first of several.
        cap_nJ: derivative of the requested tokens' and the maximum's logits by uncapped ones; 1 without a cap.
        dense_nV: q ds/du; for a policy the derivative is that of log q. With a cap it is by uncapped logits.
        share_nV: derivative of the maximum by the scores (with a cap by uncapped logits): equal shares for tokens that
            tie, as all do where training begins. None where none tie.
    """

    log_p_nK: Tensor
    score_nK: Tensor
    log_mean_n: Tensor
    maximum_n: Tensor
    place_n: Tensor
    cap_nJ: Tensor
    dense_nV: Tensor
    share_nV: Tensor | None = None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, score_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        head = Head(weight_VE, bias_V, plan.scale, plan.cap)
        ctx.head_is_trained = any(ctx.needs_input_grad[1:3])
        keeps_mean = ctx.needs_input_grad[0] and not ctx.head_is_trained
        parts: list[tuple[Tensor, ...]] = []
        mean_NE = torch.empty_like(score_NE) if keeps_mean else None
        peak_NE: Tensor | None = None
        for rows in _chunks(len(score_NE), len(weight_VE)):
            *reduced, dense_nV, share_nV = _over_vocabulary(score_NE, head, plan, rows)
            parts.append(tuple(reduced))
            if mean_NE is None:
                continue
            mean_NE[rows] = dense_nV.to(weight_VE.dtype) @ weight_VE
            if share_nV is not None:
                peak_NE = torch.zeros_like(score_NE) if peak_NE is None else peak_NE
                peak_NE[rows] = share_nV.to(weight_VE.dtype) @ weight_VE
        columns = (torch.cat(column) for column in zip(*parts, strict=True))
        log_p_NK, score_NK, log_mean_N, maximum_N, place_N, cap_NJ = columns
        ctx.mark_non_differentiable(log_p_NK, *([log_mean_N] if plan.link == "log_ratio" else []))
        if any(ctx.needs_input_grad[:3]):
            ctx.plan = plan
            ctx.autocast = _same_autocast(score_NE.device.type)
            kept = (score_NE, weight_VE, bias_V) if ctx.head_is_trained else (mean_NE, weight_VE, peak_NE)
            ctx.save_for_backward(*kept, score_NK, maximum_N, place_N, cap_NJ)
        return log_p_NK, score_NK, log_mean_N, maximum_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _: Tensor, grad_score_NK: Tensor, grad_mean_N: Tensor, grad_maximum_N: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        plan: _Plan = ctx.plan
        kept_NE, weight_VE, bias_or_peak, score_NK, maximum_N, place_N, cap_NJ = ctx.saved_tensors
        grad_peak_N = grad_maximum_N if plan.maximum else torch.zeros_like(maximum_N)
        # The dense row comes from the normaliser: with a minus sign in a policy's log q, else in log_mean.
        dense_N = -(grad_score_NK.sum(1) + grad_peak_N) if plan.link == "log_ratio" else grad_mean_N
        sparse_NK = grad_score_NK * _slope(score_NK, plan.link) * plan.scale
        grad_peak_N = grad_peak_N * _slope(maximum_N, plan.link) * plan.scale
        if plan.cap is not None:
            sparse_NK = sparse_NK * cap_NJ[:, :-1]
        dense_N = dense_N * plan.scale
        if not ctx.head_is_trained:
            at_place_N1 = (grad_peak_N if plan.cap is None else grad_peak_N * cap_NJ[:, -1])[:, None]
            if (peak_NE := bias_or_peak) is not None:
                tied_N1 = (peak_NE != 0).any(1, keepdim=True)
                at_place_N1 = at_place_N1.masked_fill(tied_N1, 0.0)
            sparse_NE = F.embedding_bag(
                torch.cat([plan.tokens_NK, place_N[:, None]], 1),
                weight_VE,
                per_sample_weights=torch.cat([sparse_NK, at_place_N1], 1).to(weight_VE.dtype),
                mode="sum",
            )
            grad_NE = sparse_NE.to(dense_N.dtype) + dense_N[:, None] * kept_NE.to(dense_N.dtype)
            if peak_NE is not None:
                grad_NE = grad_NE + (grad_peak_N[:, None] * peak_NE.to(dense_N.dtype)).masked_fill(~tied_N1, 0.0)
            return grad_NE.to(kept_NE.dtype), None, None, None
        with ctx.autocast():
            head = Head(weight_VE, bias_or_peak, plan.scale, plan.cap)
            grads = _through_head(kept_NE, head, plan, sparse_NK, dense_N, grad_peak_N)
        return *grads, None


def _through_head(
    score_NE: Tensor, head: Head, plan: _Plan, sparse_NK: Tensor, dense_N: Tensor, peak_N: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the gradients by states, weight and bias from recomputed logits."""
    grad_NE = torch.empty_like(score_NE)
    grad_VE = torch.zeros_like(head.weight_VD)
    grad_V = None if head.bias_V is None else torch.zeros_like(head.bias_V)
    for rows in _chunks(len(score_NE), len(head.weight_VD)):
        chunk = _over_vocabulary(score_NE, head, plan, rows)
        grad_nV = chunk.dense_nV.mul_(dense_N[rows][:, None]).scatter_add_(1, plan.tokens_NK[rows], sparse_NK[rows])
        if chunk.share_nV is not None:
            grad_nV.addcmul_(chunk.share_nV, peak_N[rows][:, None])
        else:
            grad_nV.scatter_add_(1, chunk.place_n[:, None], (peak_N[rows] * chunk.cap_nJ[:, -1])[:, None])
        grad_nV = grad_nV.to(head.weight_VD.dtype)
        grad_NE[rows] = (grad_nV @ head.weight_VD).to(score_NE.dtype)
        grad_VE += grad_nV.T @ score_NE[rows].to(grad_nV.dtype)
        if grad_V is not None:
            grad_V += grad_nV.sum(0)
    return grad_NE, grad_VE, grad_V


def _over_vocabulary(score_NE: Tensor, head: Head, plan: _Plan, rows: slice) -> _Chunk:
    """Reduce the logits of some tokens; derivatives are by the logits before the cap, if there is one."""
    u_nV = head.logits(score_NE[rows])
    slope_nV = None if head.cap is None else head.cap_slope(u_nV)  # the logits are overwritten
    chunk = _reduce_logits(u_nV, plan, rows)
    if slope_nV is None:
        return chunk
    index_nJ = torch.cat([plan.tokens_NK[rows], chunk.place_n[:, None]], 1)
    share_nV = None if chunk.share_nV is None else chunk.share_nV.mul_(slope_nV)
    return chunk._replace(
        cap_nJ=slope_nV.gather(1, index_nJ), dense_nV=chunk.dense_nV.mul_(slope_nV), share_nV=share_nV
    )


def _reduce_logits(u_nV: Tensor, plan: _Plan, rows: slice) -> _Chunk:
    """Reduce the logits of some tokens; each of the two matrices ``[n, V]`` is overwritten once it has been read."""
    tokens_nK = plan.tokens_NK[rows]
    cap_nJ = u_nV.new_ones((len(u_nV), tokens_nK.shape[1] + 1))
    if plan.base is None:
        log_z_n1 = u_nV.logsumexp(1, keepdim=True)
        score_nK = u_nV.gather(1, tokens_nK) - log_z_n1
        zero_n = torch.zeros_like(log_z_n1[:, 0])
        dense_nV = u_nV.sub_(log_z_n1).exp_()
        return _Chunk(torch.zeros_like(score_nK), score_nK, zero_n, zero_n, zero_n.long(), cap_nJ, dense_nV)
    base_ND, base_head = plan.base
    z_nV = base_head.logits(base_ND[rows])
    log_z_n1 = z_nV.logsumexp(1, keepdim=True)
    log_p_nK = z_nV.gather(1, tokens_nK) - log_z_n1
    likely_nk = z_nV.topk(plan.support, 1).indices if plan.maximum and 0 < plan.support < z_nV.shape[1] else None
    if plan.link == "log_ratio":
        log_norm_n1 = u_nV.logsumexp(1, keepdim=True)
        score_nK = u_nV.gather(1, tokens_nK) - log_norm_n1 - log_p_nK
        maximum_n, place_n, share_nV = _maximum(z_nV.neg_().add_(u_nV), likely_nk, plan.maximum)
        maximum_n = maximum_n + (log_z_n1 - log_norm_n1)[:, 0] if plan.maximum else maximum_n
        # A policy is normalised already; forming the sum would only add rounding.
        log_mean_n = torch.zeros_like(maximum_n)
        dense_nV = u_nV.sub_(log_norm_n1).exp_()
        return _Chunk(log_p_nK, score_nK, log_mean_n, maximum_n, place_n, cap_nJ, dense_nV, share_nV)
    score_nV = link_scores(plan.link, u_nV)
    score_nK = score_nV.gather(1, tokens_nK)
    maximum_n, place_n, share_nV = _maximum(score_nV, likely_nk, plan.maximum)
    log_norm_n1 = z_nV.add_(score_nV).logsumexp(1, keepdim=True)
    dense_nV = z_nV.sub_(log_norm_n1).exp_()
    if plan.link == "logsigmoid":
        dense_nV.addcmul_(dense_nV, score_nV.exp_(), value=-1)
    log_mean_n = (log_norm_n1 - log_z_n1)[:, 0]
    return _Chunk(log_p_nK, score_nK, log_mean_n, maximum_n, place_n, cap_nJ, dense_nV, share_nV)


def link_scores(link: Link, logits_NV: Tensor) -> Tensor:
    """Return the scores of an oracle network's logits."""
    return F.logsigmoid(logits_NV) if link == "logsigmoid" else logits_NV


def _slope(score: Tensor, link: Link) -> Tensor:
    """Return ds/du, for a policy that of log q; d log sigmoid(u) / du = 1 - sigmoid(u)."""
    return -torch.expm1(score) if link == "logsigmoid" else torch.ones_like(score)


def _maximum(score_nV: Tensor, likely_nk: Tensor | None, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the largest score, its token and the shares of tokens that tie, among the likely tokens if given."""
    if not wanted:
        nothing_n = torch.zeros_like(score_nV[:, 0])
        return nothing_n, nothing_n.long(), None
    asked_nk = score_nV if likely_nk is None else score_nV.gather(1, likely_nk)
    largest_n, place_n = asked_nk.max(1)
    tied_nk = asked_nk == largest_n[:, None]
    count_n1 = tied_nk.sum(1, keepdim=True)
    share_nV = tied_nk.to(score_nV.dtype) / count_n1 if (count_n1 > 1).any() else None
    if likely_nk is not None:
        place_n = likely_nk.gather(1, place_n[:, None])[:, 0]
        share_nV = None if share_nV is None else torch.zeros_like(score_nV).scatter_(1, likely_nk, share_nV)
    return largest_n, place_n, share_nV


def _same_autocast(device_type: str) -> Any:
    """Return a function that enters the present autocast settings again."""
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)

    def again() -> AbstractContextManager[Any]:
        return torch.autocast(device_type, dtype=dtype, enabled=enabled)

    return again


def _chunks(num_tokens: int, vocab_size: int) -> Iterator[slice]:
    """Yield the slices of rows whose logits are formed at once."""
    rows = max(1, CHUNK_ELEMENTS // vocab_size)
    return (slice(start, start + rows) for start in range(0, max(num_tokens, 1), rows))
