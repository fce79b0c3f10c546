"""Intervals over seeds, and permutation tests: paired where two groups share prompts, else over their seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from dinado.metrics.distance import difference
from dinado.metrics.intervals import Interval, mean_interval, paired_difference, unpaired_difference
from workbench.report.run_reader import Run

_RESAMPLES = 9999


class Summary(NamedTuple):
    """One measure of one group.

    Attributes:
        mean, low, high: mean over seeds with its 95 % interval; the interval is NaN where it is unknown.
        seeds: number of runs that have the measure.
        over: unit of resampling of the interval: ``seeds``, or ``prompts`` for a single run's own interval.
    """

    mean: float
    low: float
    high: float
    seeds: int
    over: str


class Test(NamedTuple):
    """The comparison of two groups on one measure.

    Attributes:
        difference: first minus second with its 95 % interval.
        p: two-sided p-value of a permutation test; corrected where several tests are made.
        least_p: smallest p-value that this number of units allows, with the same correction.
        over: ``prompts``, paired: the permutations flip the sign of each prompt's difference; or ``seeds``: they
            reassign the runs to the two groups.
        counts: units of the first and of the second group.
    """

    difference: Interval
    p: float
    least_p: float
    over: str
    counts: tuple[int, int]


def summarise(runs: Sequence[Run], key: str) -> Summary | None:
    """Compute the mean of a measure over runs, None where no run has it."""
    values = [run.final[key] for run in runs if key in run.final]
    if not values:
        return None
    if len(values) > 1:
        return Summary(*mean_interval(values), len(values), "seeds")
    final = next(run.final for run in runs if key in run.final)
    low, high = final.get(f"{key}_low", math.nan), final.get(f"{key}_high", math.nan)
    return Summary(values[0], low, high, 1, "prompts")


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> Test | None:
    """Test on the prompts that both groups share; return None for fewer than two."""
    shared = [prompt for prompt in a if prompt in b]
    if len(shared) < 2:
        return None
    first, second = [a[prompt] for prompt in shared], [b[prompt] for prompt in shared]
    p = _permuted(first, second, "samples")
    return Test(paired_difference(first, second), p, 2 / 2 ** len(shared), "prompts", (len(shared), len(shared)))


def paired_distances(a: Sequence[Run], b: Sequence[Run]) -> Test | None:
    """Test KL(q*||q) on the held-out prompts of both groups, means over runs; None where they were drawn differently.

    The success rate of the base is the same for both and cancels, and with it what is hardest to estimate.
    """
    runs = [*a, *b]
    drawn = {tuple((row["prompt"], row["gap"], row["known"]) for row in run.held_out) for run in runs}
    if len(drawn) != 1 or len(shared := drawn.pop()) < 2:
        return None
    first, second = (np.mean([[row["log_ratio"] for row in run.held_out] for run in group], 0) for group in (a, b))
    gap_P, known_P = (np.array([row[index] for row in shared], dtype=float) for index in (1, 2))
    p = _permuted(first[known_P > 0], second[known_P > 0], "samples")
    count = int(known_P.sum())
    return Test(difference(first, second, gap_P, known_P), p, 2 / 2**count, "prompts", (count, count))


def unpaired(a: Sequence[float], b: Sequence[float]) -> Test | None:
    """Test on the runs of two groups; return None when a group has only one."""
    if min(len(a), len(b)) < 2:
        return None
    ways = math.comb(len(a) + len(b), len(a))
    return Test(
        unpaired_difference(a, b), _permuted(a, b, "independent"), min(1.0, 2 / ways), "seeds", (len(a), len(b))
    )


def compare_groups(a: Sequence[Run], b: Sequence[Run], key: str) -> Test | None:
    """Test two groups on one measure: over shared prompts where runs have their numbers, else over seeds."""
    found = None
    if key == "val/success":
        found = paired(*(_shared([run.per_prompt for run in runs]) for runs in (a, b)))
    elif key == "val/kl_to_optimum":
        found = paired_distances(a, b)
    if found is not None:
        return found
    return unpaired(*([run.final[key] for run in runs if key in run.final] for runs in (a, b)))


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p-values for multiple tests (Holm, 1979)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def _shared(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each prompt's number over runs, for the prompts that all of them have."""
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
