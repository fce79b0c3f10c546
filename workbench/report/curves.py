"""Numbers over optimiser steps: what is drawn, and how curves of many points become short ones that look the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from workbench.report.groups import Group
from workbench.report.measures import CURVES, Measure
from workbench.report.run_reader import Run, is_number

POINTS = 160
"""Points that a curve keeps: about three pixels each in a figure."""
_BUDGET = 240_000
"""Points that all curves of a page keep together, about 3 MB of it."""
_OF_TRAINING = ("reg/", "norm/", "train/")


@dataclass
class Curve:
    """One line of a figure.

    Attributes:
        label: of the group.
        run: name of the run, or ``mean of N seeds``.
        steps, values: as many numbers of each.
        mean: whether it is the mean of a group, or all that there is of it.
    """

    label: str
    run: str
    steps: np.ndarray
    values: np.ndarray
    mean: bool


@dataclass
class Panel:
    """A figure: one number of all runs over optimiser steps.

    Attributes:
        thinned: how many points its longest curve had before some were left out; 0 where none were.
    """

    measure: Measure
    curves: list[Curve]
    thinned: int


def panels(groups: Sequence[Group], points: int | None = None) -> list[Panel]:
    """The figures that some run has points for; a curve of more than ``points`` is thinned."""
    if points is None:
        drawn = sum(len(one.runs) + 1 for one in groups) * len(CURVES)
        points = int(min(POINTS, max(24, _BUDGET // max(1, drawn))))
    found = []
    for measure in CURVES:
        curves = list(_curves(groups, measure.key))
        longest = max((len(curve.steps) for curve in curves), default=0)
        if longest < 2:
            continue
        for curve in curves:
            kept = thin(curve.steps, curve.values, points)
            curve.steps, curve.values = curve.steps[kept], curve.values[kept]
        found.append(Panel(measure, curves, longest if longest > points else 0))
    return found


def series(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one number of one run.

    The closing record repeats some numbers of training and measures others on held-out rollouts, under the names that
    training uses; neither belongs on the curve of the batches.
    """
    training = key.startswith(_OF_TRAINING)
    pairs = {
        float(record["step"]): float(record[key])
        for record in run.records
        if is_number(record.get(key)) and not (training and "val/success" in record)
    }
    steps = sorted(pairs)
    return np.array(steps), np.array([pairs[step] for step in steps])


def thin(steps: np.ndarray, values: np.ndarray, points: int) -> np.ndarray:
    """Indices of at most ``points`` points that keep a curve's shape: both ends, and of every stretch its extremes."""
    if len(steps) <= points:
        return np.arange(len(steps))
    edges = np.linspace(1, len(steps) - 1, max(2, (points - 2) // 2) + 1).astype(int)
    kept = {0, len(steps) - 1}
    for start, stop in pairwise(edges):
        if start < stop:
            kept |= {start + int(values[start:stop].argmin()), start + int(values[start:stop].argmax())}
    return np.array(sorted(kept))


def _curves(groups: Sequence[Group], key: str) -> Iterator[Curve]:
    for one in groups:
        own = [(run, *series(run, key)) for run in one.runs]
        own = [(run, steps, values) for run, steps, values in own if len(steps)]
        for run, steps, values in own:
            yield Curve(one.label, f"seed {run.seed}", steps, values, len(own) == 1)
        if len(own) > 1:
            shared = own[0][1]
            for _, steps, _ in own[1:]:
                shared = np.intersect1d(shared, steps, assume_unique=True)
            if len(shared):
                rows = [values[np.isin(steps, shared)] for _, steps, values in own]
                yield Curve(one.label, f"mean of {len(own)} seeds", shared, np.mean(rows, axis=0), True)
