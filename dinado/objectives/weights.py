"""Importance weights: what a rollout drawn from a proposal s counts for under the base p.

w = exp(log p - log s), self-normalised per prompt to mean 1 and clipped. Axes: K rollouts of one prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class WeightSummary(NamedTuple):
    """How uneven a set of weights is."""

    ess_fraction: float
    """Effective sample size (sum w)^2 / sum w^2 over the number of rollouts, 1 for equal weights."""
    max_share: float
    """Largest weight over their sum."""


def importance_weights(log_p_K: Tensor, log_s_K: Tensor, clip: float = 0.0) -> Tensor:
    """Self-normalised weights with mean 1, float32 ``[K]``.

    Args:
        log_p_K: log-probability of each whole response under the full base.
        log_s_K: the same under the proposal that was actually sampled, temperature and truncation included.
        clip: largest weight, relative to the mean; 0 never clips. Clipping biases towards the proposal and
            is followed by renormalising.

    A response the base gives probability 0 gets weight 0. A proposal that truncates cannot be corrected for
    what it never draws.
    """
    log_w_K = (log_p_K - log_s_K).double()
    weight_K = (log_w_K - log_w_K.max()).exp()
    weight_K = weight_K / weight_K.mean()
    if clip > 0:
        weight_K = weight_K.clamp_max(clip)
        weight_K = weight_K / weight_K.mean()
    return weight_K.float()


def summarise_weights(weight_N: Tensor) -> WeightSummary:
    """Effective sample size and largest share of ``[N]`` non-negative weights."""
    weight_N = weight_N.double()
    total = weight_N.sum()
    return WeightSummary(float(total.square() / weight_N.square().sum() / len(weight_N)), float(weight_N.max() / total))


def smoothed_root(score_K: Tensor, weight_K: Tensor | None = None, prior: float = 0.5) -> float:
    """Estimate of R(c) from one prompt's rollouts, pulled off 0 and 1.

    (sum w C + a) / (sum w + 2 a), with the Jeffreys prior a = 1/2.
    """
    weight_K = torch.ones_like(score_K) if weight_K is None else weight_K
    return float(((weight_K * score_K).sum() + prior) / (weight_K.sum() + 2 * prior))
