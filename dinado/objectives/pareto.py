"""Pareto-smoothed importance weights: the largest weights are replaced by their expected values under a fitted tail.

Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling" (JMLR 2024); the tail is fitted as in
Zhang and Stephens, "A new and efficient estimation method for the generalized Pareto distribution" (2009).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TAIL_AT_LEAST = 5
"""Smallest number of tail weights to which a shape can be fitted."""


def pareto_smoothed(weight_K: Tensor) -> tuple[Tensor, float]:
    """Smooth the tail of weights ``[K]`` without changing their mean, and fit the tail's shape k.

    Above k = 0.7 an average with these weights is unreliable, however large K is.

    Returns:
        Weights and k; the unchanged weights and NaN if the tail is too short or all of it equal.
    """
    num = len(weight_K)
    length = math.ceil(min(0.2 * num, 3 * math.sqrt(num)))
    if length < TAIL_AT_LEAST:
        return weight_K, math.nan
    order = weight_K.argsort()
    tail = order[-length:]
    cutoff = weight_K[order[-length - 1]]
    excess = (weight_K[tail] - cutoff).double()
    if not excess[-1] > excess[0]:
        return weight_K, math.nan
    # The excess of a weight that equals the cutoff is 0 and has no logarithm.
    excess = excess.clamp_min(1e-12 * float(excess[-1]))
    shape, scale = fit_tail(excess)
    # The shape of a short tail is shrunk towards 1/2, as the authors do.
    shape = (length * shape + 10 * 0.5) / (length + 10)
    probability = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    expected = _quantile(probability, shape, scale) + cutoff
    smoothed = weight_K.clone()
    smoothed[tail] = torch.minimum(expected, weight_K[order[-1]].double()).to(weight_K.dtype)
    return smoothed * (weight_K.mean() / smoothed.mean()), shape


def fit_tail(excess: Tensor) -> tuple[float, float]:
    """Fit the shape k and the scale of a generalised Pareto distribution.

    Args:
        excess: sorted positive numbers, float64.
    """
    num = len(excess)
    points = 30 + int(math.sqrt(num))
    grid = torch.arange(1, points + 1, dtype=torch.float64) - 0.5
    quartile = excess[max(0, int(num / 4 + 0.5) - 1)]
    theta = 1 / excess[-1] + (1 - torch.sqrt(points / grid)) / (3 * quartile)
    shape = torch.log1p(-theta[:, None] * excess).mean(1)
    likelihood = num * (torch.log(-theta / shape) - shape - 1)
    # The posterior mean over the grid; a point where the likelihood is undefined gets weight 0.
    weight = torch.nan_to_num(likelihood, nan=-torch.inf).softmax(0)
    best = (theta * weight).sum()
    k = torch.log1p(-best * excess).mean()
    return float(k), float(-k / best)


def _quantile(probability: Tensor, shape: float, scale: float) -> Tensor:
    if abs(shape) < 1e-9:
        return -scale * torch.log1p(-probability)
    return scale * torch.expm1(-shape * torch.log1p(-probability)) / shape
