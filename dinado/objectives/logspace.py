"""Bernoulli quantities of a log-probability, in float32 and numerically safe near probabilities 0 and 1.

References: Lu et al., DiNADO (ICML 2024) and Meng et al., NADO (NeurIPS 2022) for the losses built on these.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_CEILING = math.log(0.99)
"""Above R = 0.99, log(1 - R) is continued linearly in log R: a negative rollout keeps a finite gradient however far an
unbounded R exceeds 1, where the exact expression is undefined."""
LOG_FLOOR = -70.0
"""Smallest log R; lower values are clamped."""


def at_least_float(values: Tensor) -> Tensor:
    """Return values of a shorter type in float32, others as they are."""
    return values if values.dtype == torch.float64 else values.float()


def log1mexp(log_a: Tensor) -> Tensor:
    """Compute log(1 - exp(log_a)) for log_a <= 0, accurate at both ends (Maechler 2012); -inf at 0."""
    near_zero = log_a > -math.log(2.0)
    # Each branch gets only arguments for which it is defined; otherwise its unused gradient would be NaN.
    small = torch.where(near_zero, log_a, -1.0)
    large = torch.where(near_zero, -1.0, log_a)
    return torch.where(near_zero, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def log_complement(log_r: Tensor) -> Tensor:
    """Compute log(1 - R), continued linearly in log R above R = 0.99, so that R > 1 is penalised and not undefined."""
    inside = log1mexp(log_r.clamp_max(LOG_CEILING))
    slope = math.exp(LOG_CEILING) / (1.0 - math.exp(LOG_CEILING))
    return inside - slope * (log_r - LOG_CEILING).clamp_min(0.0)


def bernoulli_ce(log_r: Tensor, target: Tensor) -> Tensor:
    """Compute the cross entropy -C log R - (1 - C) log(1 - R) in nats, elementwise; R = exp(log_r), C in [0, 1].

    The term of a positive is 0, not negative, where log R > 0.
    """
    log_r = log_r.clamp_min(LOG_FLOOR)
    return -target * log_r.clamp_max(0.0) - (1.0 - target) * log_complement(log_r)


def poisson_ce(log_r: Tensor, target: Tensor) -> Tensor:
    """Compute the generalised KL divergence C log(C / R) - C + R in nats, elementwise; R = exp(log_r) may exceed 1.

    Its derivative by log R is min(R, 2) - C, which is bounded; that of the Bernoulli cross entropy, (R - C) / (1 - R),
    is not.
    """
    log_r = log_r.clamp_min(LOG_FLOOR)
    ceiling = math.log(2.0)
    r = log_r.clamp_max(ceiling).exp() + 2.0 * (log_r - ceiling).clamp_min(0.0)
    return torch.xlogy(target, target) - target * log_r - target + r


def bernoulli_kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Compute f_KL(a || b) = a log(a/b) + (1 - a) log((1 - a)/(1 - b)) between Bernoulli means, in nats.

    It is the regulariser of NADO (Meng et al. 2022). Gradients flow into both arguments. Above 0.99 log(1 - a) and
    log(1 - b) continue as in :func:`log_complement`; of an a above 1, log a counts as far as b does not reach it.
    """
    log_a, log_b = log_a.clamp_min(LOG_FLOOR), log_b.clamp_min(LOG_FLOOR)
    inside_a, inside_b = log_a.clamp_max(0.0), log_b.clamp_max(0.0)
    a = inside_a.exp()
    value = a * (inside_a - inside_b) + (1.0 - a) * (log_complement(inside_a) - log_complement(log_b))
    return value + (log_a.clamp_min(0.0) - log_b.clamp_min(0.0)).clamp_min(0.0)
