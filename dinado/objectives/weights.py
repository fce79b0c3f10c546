"""Importance weights of rollouts that were drawn from a proposal s, under the base p.

The weight functions take the rollouts of one prompt and return weights of mean 1, that is, self-normalised weights.
Axes: K rollouts of one prompt, J proposals.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class WeightSummary(NamedTuple):
    """Measures of how uneven a set of weights is."""

    ess_fraction: float
    """Effective sample size (sum w)^2 / sum w^2 over the number of rollouts, 1 for equal weights."""
    max_share: float
    """Largest weight over their sum."""


def importance_weights(log_p_K: Tensor, log_s_K: Tensor) -> Tensor:
    """Compute p / s with mean 1, float64 ``[K]``.

    Args:
        log_p_K: log-probability of each whole response under the full base.
        log_s_K: the same under the distribution that was sampled, temperature and truncation included; with several
            proposals, under each rollout's own proposal or under the mixture (:func:`log_mixture`).

    A response to which the base gives probability 0 gets weight 0. Weights cannot correct a truncated proposal for
    responses that it never draws.
    """
    return _self_normalised((log_p_K - log_s_K).double())


def log_mixture(log_s_KJ: Tensor, count_J: Tensor) -> Tensor:
    """Compute the log-density ``[K]`` of rollouts under the mixture of all proposals, by their shares of the rollouts.

    The balance heuristic (Veach and Guibas, 1995) weighs by p over this density, which is as unbiased as p over each
    rollout's own proposal, and never exceeds p / s over the share of any one proposal. With a share b from the base,
    no weight exceeds 1 / b before normalising.

    Args:
        log_s_KJ: log-probability of every response under every proposal; -inf where one cannot draw it.
        count_J: number of the K rollouts that were drawn from each proposal.
    """
    share_J = count_J.double() / count_J.sum()
    return (log_s_KJ.double() + share_J.log()).logsumexp(1)


def likelihood_weights(log_p_K: Tensor, same_K: Tensor, complement: bool = False) -> Tensor:
    """Weigh distinct responses in proportion to p, mean 1, float64 ``[K]``; copies of a response share its weight.

    This is likelihood re-weighting as far as its published description goes (Lu et al., 2023): the frequency of a draw
    does not matter, so a beam serves as well as samples. Without the complement, the weighted responses represent the
    base restricted to the responses seen.

    Args:
        same_K: equal numbers for equal responses.
        complement: weigh the distinct responses U of the first half of the rollouts by p, and let those of the second
            half that are not in U represent all other responses, with weight 1 - p(U) together. This is unbiased if
            the second half was drawn from the base.
    """
    _, same_K, copies = torch.unique(same_K, return_inverse=True, return_counts=True)
    log_p_K = log_p_K.double()
    if not complement:
        return _self_normalised(log_p_K - copies[same_K].log())
    half = len(log_p_K) // 2
    first_K = torch.arange(len(log_p_K)) < half
    copies = torch.bincount(same_K[first_K], minlength=len(copies))
    inside_K = copies[same_K] > 0
    weight_K = torch.where(first_K, log_p_K.exp() / copies[same_K].clamp_min(1), torch.zeros_like(log_p_K))
    outside_K = ~first_K & ~inside_K
    if outside_K.any():
        weight_K = weight_K + outside_K * (1 - weight_K.sum()).clamp_min(0) / outside_K.sum()
    return weight_K / weight_K.mean()


def clipped(weight_K: Tensor, clip: float) -> Tensor:
    """Clip weights at ``clip`` times their mean and rescale them to mean 1, which biases them towards the proposal.

    Args:
        clip: 0 never clips.
    """
    if clip <= 0:
        return weight_K
    weight_K = weight_K.clamp_max(clip * weight_K.mean())
    return weight_K / weight_K.mean()


def summarise_weights(weight_N: Tensor) -> WeightSummary:
    """Compute the effective sample size and the largest share of ``[N]`` non-negative weights."""
    weight_N = weight_N.double()
    total = weight_N.sum()
    return WeightSummary(effective_size(weight_N) / len(weight_N), float(weight_N.max() / total))


def effective_size(weight_N: Tensor) -> float:
    """Compute the effective sample size (sum w)^2 / sum w^2; 0 if all weights are 0.

    Applied to w C: the effective number of accepted rollouts.
    """
    squares = float(weight_N.double().square().sum())
    return float(weight_N.double().sum()) ** 2 / squares if squares else 0.0


def smoothed_root(score_K: Tensor, weight_K: Tensor | None = None, prior: float = 0.5) -> float:
    """Estimate R(c) from one prompt's rollouts, shrunk away from 0 and 1.

    The estimate is (n r + a) / (n + 2 a), with r = sum w C / sum w and the Jeffreys prior a = 1/2. Of uneven weights, n
    is the number of plain draws whose average varies as much as r does, sum w * sum w (C - r)^2 / sum w^2 (C - r)^2.
    Where accepted rollouts are rare in the base and many in the proposal, that is far more than the effective sample
    size, which counts the rejected ones too: their weights are large and say little about r.
    """
    score_K = score_K.double()
    weight_K = torch.ones_like(score_K) if weight_K is None else weight_K.double()
    rate = float((weight_K * score_K).sum() / weight_K.sum())
    deviation_K = weight_K * (score_K - rate).square()
    varies = float((weight_K * deviation_K).sum())
    trials = float(weight_K.sum() * deviation_K.sum()) / varies if varies > 0 else effective_size(weight_K)
    return (trials * rate + prior) / (trials + 2 * prior)


def _self_normalised(log_w_K: Tensor) -> Tensor:
    weight_K = (log_w_K - log_w_K.max()).exp()
    return weight_K / weight_K.mean()
