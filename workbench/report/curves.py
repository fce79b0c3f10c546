"""Curves of measures over optimiser steps, and their reduction to fewer points without a visible change of shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dinado.evaluation.measures import CURVES, Measure, measure
from workbench.report.groups import Group
from workbench.report.run_reader import Run, is_number

POINTS = 160
"""Most points of a curve: one for about three pixels of a figure."""
_BUDGET = 240_000
"""Points of all curves of a page together, about 3 MB of the page."""
_OF_TRAINING = ("reg/", "norm/", "train/")


@dataclass
class Curve:
    """One line of a figure.

    Attributes:
        label: label of the group.
        run: name of the run, or ``mean of N seeds``.
        steps, values: optimiser steps and the values there, of equal length.
        mean: whether it is the mean of a group, or its only run.
    """

    label: str
    run: str
    steps: np.ndarray
    values: np.ndarray
    mean: bool


@dataclass
class Panel:
    """A figure: one measure of all runs over optimiser steps.

    Attributes:
        thinned: number of points of the longest curve before thinning; 0 where no curve was thinned.
    """

    measure: Measure
    curves: list[Curve]
    thinned: int


def panels(groups: Sequence[Group], points: int | None = None) -> list[Panel]:
    """Return the figures for which some run has points; a curve with more than ``points`` points is thinned."""
    if points is None:
        drawn = sum(len(one.runs) + 1 for one in groups) * len(CURVES)
        points = int(min(POINTS, max(24, _BUDGET // max(1, drawn))))
    found = []
    for key in CURVES:
        curves = list(_curves(groups, key))
        longest = max((len(curve.steps) for curve in curves), default=0)
        if longest < 2:
            continue
        for curve in curves:
            kept = thin(curve.steps, curve.values, points)
            curve.steps, curve.values = curve.steps[kept], curve.values[kept]
        found.append(Panel(measure(key), curves, longest if longest > points else 0))
    return found


def series(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the values of one measure of one run.

    The final record repeats some training numbers and has others of held-out rollouts under the same names; a curve
    of training leaves both out.
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
    """Return indices of at most ``points`` points that keep a curve's shape: both ends and each interval's extremes."""
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
