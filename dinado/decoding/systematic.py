"""Systematic resampling of weighted particles, also with one particle that is retained.

Axes: K particles of one prompt.
"""

from __future__ import annotations

import numpy as np

from dinado.decoding.log_weights import log_sum


def shares(log_weight_K: np.ndarray) -> np.ndarray:
    """Normalise weights; at least one must be above 0."""
    return np.exp(log_weight_K - log_sum(log_weight_K))


def ancestors(log_weight_K: np.ndarray, uniform: float) -> np.ndarray:
    """Return the particle that each slot takes over, in order; particle k gets K w_k of them, rounded up or down.

    Args:
        uniform: one number in [0, 1) for all slots (Kitagawa, 1996).
    """
    count = len(log_weight_K)
    cdf_K = shares(log_weight_K).cumsum()
    points_K = (np.arange(count) + uniform) / count * cdf_K[-1]
    # A point may round up to the end; the last particle with a weight has it then.
    return np.minimum(np.searchsorted(cdf_K, points_K, side="right"), np.flatnonzero(np.isfinite(log_weight_K))[-1])


def ancestors_retaining(log_weight_K: np.ndarray, retained: int, uniform: float) -> tuple[np.ndarray, int]:
    """Return the particle of each slot given that ``retained`` is among them, and the slot that it is retained in.

    The point that selects it is uniform over its own interval of the cumulative weights, and the other slots' points
    follow from that one: the conditional distribution of systematic resampling (Chopin and Singh, 2015, section 4.3).
    """
    count, share_K = len(log_weight_K), shares(log_weight_K)
    point = count * (share_K[:retained].sum() + uniform * share_K[retained])
    slot = min(int(point), count - 1)
    ancestors_K = ancestors(log_weight_K, min(max(point - slot, 0.0), np.nextafter(1.0, 0.0)))
    ancestors_K[slot] = retained  # rounding may have moved the point over the border
    return ancestors_K, slot
