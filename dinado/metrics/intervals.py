"""95 % intervals over prompts.

Samples of one prompt are correlated, so prompts are resampled (a cluster bootstrap): the functions take one number per
prompt, however many samples it was computed from.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

_LEVEL = 0.95
_RESAMPLES = 2000
_BATCH_VALUES = 1_000_000  # numbers held at once while resampling


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval, NaN where the data do not determine them."""

    mean: float
    low: float
    high: float


def mean_interval(per_prompt_values: Sequence[float], seed: int = 0, *, proportion: bool = False) -> Interval:
    """Compute the mean over prompts with its bootstrap interval (BCa, Efron 1987).

    Args:
        per_prompt_values: one number for each prompt; NaN is an error of the caller.
        seed: seed of the resampling; equal inputs give equal intervals.
        proportion: whether the values are success rates. Wilson's interval, with every prompt as one trial, then
            replaces a bootstrap without variation (one prompt, or all values equal). Otherwise equal values give an
            interval of width 0, and one prompt gives NaN ends.
    """
    values = _finite(per_prompt_values)
    if len(values) < 2 or np.ptp(values) <= 1e-12 * abs(values).max():
        mean = float(values.mean()) if len(values) else math.nan
        if proportion:
            return proportion_interval(mean * len(values), len(values))
        return Interval(mean, mean, mean) if len(values) > 1 else Interval(mean, math.nan, math.nan)
    return _bootstrap((values,), np.mean, seed)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """Compute ``sum numerators / sum denominators``, one of each per prompt, with its bootstrap interval.

    Prompts whose denominator is 0 carry no information about the ratio and are left out.
    """
    top, bottom = _finite(numerators), _finite(denominators)
    top, bottom = top[bottom != 0], bottom[bottom != 0]
    if len(top) < 2 or np.ptp(top / bottom) <= 1e-12 * abs(top / bottom).max():
        return mean_interval(top / bottom, seed)
    return _bootstrap((top, bottom), lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis), seed)


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Interval:
    """Compute the mean over prompts of ``a - b``, two methods' values on the same prompts, with its interval."""
    return mean_interval(_finite(a) - _finite(b), seed)


def proportion_interval(successes: float, total: float) -> Interval:
    """Compute Wilson's score interval for a share of independent trials; NaN without trials."""
    if total == 0:
        return Interval(math.nan, math.nan, math.nan)
    z = stats.norm.ppf((1 + _LEVEL) / 2)
    share = successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def weighted_proportion_interval(scores: ArrayLike, weights: ArrayLike) -> Interval:
    """Compute ``sum w C / sum w`` over rollouts of one prompt, with Wilson's interval.

    The number of trials is the one at which a plain average has the variance of the self-normalised average,
    sum w^2 (C - R)^2 / (sum w)^2. Where that is 0 (all verdicts equal), it is the effective sample size.
    """
    score, weight = _finite(scores), _finite(weights)
    if not weight.sum():
        return Interval(math.nan, math.nan, math.nan)
    weight = weight / weight.sum()
    rate = float(weight @ score)
    variance = float((weight**2) @ (score - rate) ** 2)
    trials = rate * (1 - rate) / variance if variance > 0 else 1 / float((weight**2).sum())
    return proportion_interval(rate * trials, trials)


def _finite(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    assert np.isfinite(array).all(), "NaN or infinity among the values of prompts"
    return array


def _bootstrap(data: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], seed: int) -> Interval:
    def interval(method: str) -> tuple[float, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            result = stats.bootstrap(
                data,
                statistic,
                paired=len(data) > 1,
                vectorized=True,
                axis=-1,
                n_resamples=_RESAMPLES,
                batch=max(1, _BATCH_VALUES // len(data[0])),
                confidence_level=_LEVEL,
                method=method,
                rng=np.random.default_rng(seed),
            )
        return float(result.confidence_interval.low), float(result.confidence_interval.high)

    low, high = interval("BCa")
    if math.isnan(low) or math.isnan(high):  # the data are too skewed for the corrections of BCa
        low, high = interval("percentile")
    return Interval(float(statistic(*data)), low, high)
