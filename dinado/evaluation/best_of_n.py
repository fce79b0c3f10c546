"""The frontier that needs no training: success and KL(q||p) of the best of n samples of the base.

Best-of-n obeys in 1 - (1 - R(c))^n of its texts, at KL(q||p) <= log n - (n - 1)/n (Beirami et al. 2024). A trained
model is worth its training where it obeys as often at no more KL(q||p), with one sample. No torch is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from dinado.metrics.distance import fitted_beta

NUMBERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class Point(NamedTuple):
    """Best of ``n``: its success rate over prompts, and the bound on its KL(q||p) in nats."""

    n: int
    success: float
    kl_from_base: float


def frontier(counts: Sequence[tuple[int, int]], numbers: Sequence[int] = NUMBERS) -> list[Point]:
    """Estimate the frontier from the base's held-out rollouts.

    Args:
        counts: accepted and all rollouts of each prompt.

    Up to n rollouts of a prompt, the share of groups of n without an accepted one is unbiased; beyond, it is expected
    under a beta distribution of R over prompts, given the prompt's rollouts.
    """
    accepted_P, drawn_P = (np.array(column, dtype=float) for column in zip(*counts, strict=True))
    a, b = fitted_beta(accepted_P, drawn_P)
    found = []
    for n in numbers:
        beyond_P = special.betaln(a + accepted_P, b + drawn_P - accepted_P + n)
        expected_P = np.exp(beyond_P - special.betaln(a + accepted_P, b + drawn_P - accepted_P))
        failed_P = drawn_P - accepted_P
        groups_P = _log_choose(failed_P, n) - _log_choose(drawn_P, n)
        none_P = np.where(drawn_P >= n, np.where(failed_P >= n, np.exp(groups_P), 0.0), expected_P)
        found.append(Point(n, float(1 - none_P.mean()), math.log(n) - (n - 1) / n))
    return found


def kl_at(points: Sequence[Point], success: float) -> float:
    """Interpolate the KL(q||p) at which best-of-n reaches a success rate; NaN beyond its ends."""
    rates = [point.success for point in points]
    if not points or not rates[0] <= success <= rates[-1]:
        return math.nan
    return float(np.interp(success, rates, [point.kl_from_base for point in points]))


def _log_choose(total: np.ndarray, n: int) -> np.ndarray:
    inside = np.maximum(total, n)
    return np.asarray(special.gammaln(inside + 1) - special.gammaln(inside - n + 1) - special.gammaln(n + 1))
