"""95 % intervals over prompts or seeds.

Samples of one prompt are correlated, so a prompt is the unit: the functions take one number per prompt, however many
samples it was computed from. benchmarks/estimator_coverage.py measures how often they hold the truth.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
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


def mean_interval(values: ArrayLike) -> Interval:
    """Compute the mean over prompts (or seeds) with Student's interval; one value has NaN ends.

    Args:
        values: one number for each prompt; NaN is an error of the caller.
    """
    value_P = _finite(values)
    if len(value_P) < 2:
        return Interval(float(value_P.mean()) if len(value_P) else math.nan, math.nan, math.nan)
    return _student(float(value_P.mean()), float(value_P.var(ddof=1)) / len(value_P), len(value_P) - 1)


def rate_interval(rates: ArrayLike, trials: int) -> Interval:
    """Compute the mean success rate over prompts with Wilson's interval for clustered trials.

    The number of trials is the effective one, at which independent trials would vary as the rates do (Korn and Graubard
    1998); it is at most the number of samples, and Student's quantile replaces the normal one.

    Args:
        rates: share of accepted samples of each prompt; for one prompt its samples are the unit.
        trials: number of samples of each prompt.
    """
    rate_P = _finite(rates)
    if len(rate_P) < 2:
        return proportion_interval(float(rate_P.sum()) * trials, len(rate_P) * trials)
    mean, total = float(rate_P.mean()), float(len(rate_P) * trials)
    variance = float(rate_P.var(ddof=1)) / len(rate_P)
    if variance > 0 and 0 < mean < 1:
        total = min(total, mean * (1 - mean) / variance)
    return _wilson(mean, total, float(stats.t.ppf((1 + _LEVEL) / 2, len(rate_P) - 1)))


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Interval:
    """Compute ``sum numerators / sum denominators``, one of each per prompt, with its bootstrap interval.

    A prompt whose denominator is 0 counts too: what it adds to the numerator is part of the ratio.
    """
    top, bottom = _finite(numerators), _finite(denominators)
    if not bottom.sum():
        return Interval(math.nan, math.nan, math.nan)
    return bootstrap_interval((top, bottom), lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis), seed)


def bootstrap_interval(data: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], seed: int = 0) -> Interval:
    """Compute a statistic of several numbers per prompt with its bootstrap interval (BCa, Efron 1987).

    Args:
        data: arrays with one number per prompt.
        statistic: a function of them, with the argument ``axis``, that takes leading axes of resamples.
        seed: seed of the resampling; equal inputs give equal intervals.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*data))
        if len(data[0]) < 2:
            return Interval(value, math.nan, math.nan)
        left_out = [float(statistic(*(np.delete(one, index) for one in data))) for index in range(len(data[0]))]
        if np.ptp(left_out) <= 1e-12 * max(np.abs(left_out)):
            return Interval(value, value, value)
        low, high = _bootstrap(data, statistic, "BCa", seed)
        if math.isnan(low) or math.isnan(high):  # the data are too skewed for the corrections of BCa
            low, high = _bootstrap(data, statistic, "percentile", seed)
    return Interval(value, low, high)


def paired_difference(a: ArrayLike, b: ArrayLike) -> Interval:
    """Compute the mean over prompts of ``a - b``, two methods' values on the same prompts, with Student's interval."""
    return mean_interval(_finite(a) - _finite(b))


def unpaired_difference(a: ArrayLike, b: ArrayLike) -> Interval:
    """Compute the difference of the means of two groups of runs with Welch's interval; NaN ends for a single run."""
    first, second = _finite(a), _finite(b)
    mean = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return Interval(mean, math.nan, math.nan)
    part, other = first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)
    if part + other == 0:
        return Interval(mean, mean, mean)
    freedom = (part + other) ** 2 / (part**2 / (len(first) - 1) + other**2 / (len(second) - 1))
    return _student(mean, float(part + other), float(freedom))


def proportion_interval(successes: float, total: float) -> Interval:
    """Compute Wilson's score interval for a share of independent trials; NaN without trials."""
    if total == 0:
        return Interval(math.nan, math.nan, math.nan)
    return _wilson(successes / total, total, float(stats.norm.ppf((1 + _LEVEL) / 2)))


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


def _student(mean: float, variance: float, freedom: float) -> Interval:
    half = float(stats.t.ppf((1 + _LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def _wilson(share: float, total: float, z: float) -> Interval:
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def _finite(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    assert np.isfinite(array).all(), "NaN or infinity among the values of prompts"
    return array


def _bootstrap(
    data: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], method: str, seed: int
) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            data,
            statistic,
            paired=True,
            vectorized=True,
            axis=-1,
            n_resamples=_RESAMPLES,
            batch=max(1, _BATCH_VALUES // len(data[0])),
            confidence_level=_LEVEL,
            method=method,
            rng=np.random.default_rng(seed),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
