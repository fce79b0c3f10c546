"""Intervals over seeds, and tests: paired where two groups answered the same prompts, else over their seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from dinado.metrics.intervals import Interval, mean_interval, paired_difference
from workbench.report.run_reader import Run

_RESAMPLES = 9999


class Summary(NamedTuple):
    """One number of one group.

    Attributes:
        mean, low, high: mean over seeds with its 95 % interval, NaN where it is unknown.
        seeds: how many runs have the number.
        over: what the interval resamples: ``seeds``, or ``prompts`` where there is but one run and it brought one.
    """

    mean: float
    low: float
    high: float
    seeds: int
    over: str


class Test(NamedTuple):
    """Two groups compared on one number.

    Attributes:
        difference: first minus second with its 95 % interval.
        p: two-sided, of a permutation test; corrected once several are made.
        least_p: the smallest that so few units can give, corrected alike.
        over: ``prompts``, paired: the sign of each prompt's difference is flipped; or ``seeds``, whose runs are dealt
            out to the two groups anew.
        counts: units of the first and of the second group.
    """

    difference: Interval
    p: float
    least_p: float
    over: str
    counts: tuple[int, int]


def summarise(runs: Sequence[Run], key: str) -> Summary | None:
    """The mean over runs of a number, None where no run has it."""
    values = [run.final[key] for run in runs if key in run.final]
    if not values:
        return None
    if len(values) > 1:
        return Summary(*mean_interval(values), len(values), "seeds")
    final = next(run.final for run in runs if key in run.final)
    low, high = final.get(f"{key}_low", math.nan), final.get(f"{key}_high", math.nan)
    return Summary(values[0], low, high, 1, "prompts")


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> Test | None:
    """Test on the prompts that both have; None when there are fewer than two."""
    shared = [prompt for prompt in a if prompt in b]
    if len(shared) < 2:
        return None
    first, second = [a[prompt] for prompt in shared], [b[prompt] for prompt in shared]
    p = _permuted(first, second, "samples")
    return Test(paired_difference(first, second), p, 2 / 2 ** len(shared), "prompts", (len(shared), len(shared)))


def unpaired(a: Sequence[float], b: Sequence[float]) -> Test | None:
    """Test on the numbers of two groups' runs; None when a group has but one."""
    if min(len(a), len(b)) < 2:
        return None
    mean = float(np.mean(a) - np.mean(b))
    difference = Interval(mean, mean, mean)
    if np.ptp(a) + np.ptp(b) > 0:
        result = stats.bootstrap(
            (a, b), _difference, vectorized=True, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
        )
        difference = Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))
    ways = math.comb(len(a) + len(b), len(a))
    return Test(difference, _permuted(a, b, "independent"), min(1.0, 2 / ways), "seeds", (len(a), len(b)))


def compare_groups(a: Sequence[Run], b: Sequence[Run], key: str) -> Test | None:
    """Two groups on one number: over shared prompts where the samples tell it prompt by prompt, else over seeds."""
    if key == "val/success":
        found = paired(_per_prompt(a), _per_prompt(b))
        if found is not None:
            return found
    return unpaired(*([run.final[key] for run in runs if key in run.final] for runs in (a, b)))


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for being several (Holm, 1979)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def _per_prompt(runs: Sequence[Run]) -> dict[str, float]:
    """Mean over runs of each prompt's success, where all of them have the prompt."""
    tables = [run.per_prompt for run in runs]
    shared = [prompt for prompt in tables[0] if all(prompt in table for table in tables)]
    return {prompt: sum(table[prompt] for table in tables) / len(tables) for prompt in shared}


def _permuted(a: Sequence[float], b: Sequence[float], kind: str) -> float:
    if np.ptp([*a, *b]) == 0:
        return 1.0
    test = stats.permutation_test(
        (np.asarray(a), np.asarray(b)),
        _difference,
        permutation_type=kind,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=1000,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def _difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(a.mean(axis=axis) - b.mean(axis=axis))
