"""Importance weights in log space: their mean, their effective number, and choices in proportion to them.

Axes: K texts of one prompt.
"""

from __future__ import annotations

import math

import numpy as np


def log_sum(log_weight_K: np.ndarray) -> float:
    """Compute the log of the summed weights; -inf if all are 0."""
    return float(np.logaddexp.reduce(log_weight_K))


def log_mean(log_weight_K: np.ndarray) -> float:
    """Compute the log of the mean weight, an estimate of log Z that is too small on average; -inf if all are 0."""
    return log_sum(log_weight_K) - math.log(len(log_weight_K))


def effective_number(log_weight_K: np.ndarray) -> float:
    """Compute (sum w)^2 / sum w^2, the number of equally weighted texts that are worth as much; 0 if all are 0."""
    if np.isneginf(log_weight_K).all():
        return 0.0
    return math.exp(2 * log_sum(log_weight_K) - log_sum(2 * log_weight_K))


def chosen(log_weight_K: np.ndarray, uniform: float) -> int:
    """Return the index that a uniform number selects in proportion to the weights; of equal ones if all are 0."""
    if np.isneginf(log_weight_K).all():
        return min(int(uniform * len(log_weight_K)), len(log_weight_K) - 1)
    cdf_K = np.exp(log_weight_K - log_weight_K.max()).cumsum()
    return min(int(np.searchsorted(cdf_K, uniform * cdf_K[-1], side="right")), len(cdf_K) - 1)
