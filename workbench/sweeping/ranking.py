"""The ranking of swept settings; trials that differ in their seeds alone share a row."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from workbench.settings import schema
from workbench.sweeping.sweep_folder import FINISHED, STOPPED_EARLY, Outcome
from workbench.sweeping.trials import Trial

SEEDS = tuple(
    sorted(
        (k for k, leaf in schema.leaves().items() if leaf.about.repeats),
        key=lambda k: -schema.leaves()[k].about.repeats,
    )
)
"""Seeds: settings that repeat an experiment instead of changing it, the one that redraws most of a run first."""


@dataclass(frozen=True)
class Ranked:
    """A row of the ranking.

    Attributes:
        settings: the swept settings without seeds.
        mean: mean of the metric over seeds; NaN where no trial has finished.
        low: lower end of its 95 % interval; NaN for fewer than two seeds.
        high: upper end.
        finished: number of finished trials.
        trials: number of all trials.
        stopped: number of trials that were stopped early.
    """

    settings: dict[str, Any]
    mean: float
    low: float
    high: float
    finished: int
    trials: int
    stopped: int

    @property
    def complete(self) -> bool:
        """Whether all of its trials have finished."""
        return self.finished == self.trials


def rank(trials: Sequence[Trial], outcomes: Mapping[str, Outcome], maximise: bool) -> list[Ranked]:
    """Return rows from best to worst; incomplete rows come last, because the missing trial may be the worst."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(tuple(repr(value) for value in _unseeded(trial).values()), []).append(trial)
    rows = []
    for members in groups.values():
        known = [(trial, outcomes[trial.id]) for trial in members if trial.id in outcomes]
        values = [(trial, one.value) for trial, one in known if one.status == FINISHED and one.value is not None]
        mean, low, high = over_seeds(_independent(values))
        stopped = sum(one.status == STOPPED_EARLY for _, one in known)
        rows.append(Ranked(_unseeded(members[0]), mean, low, high, len(values), len(members), stopped))
    sign = -1.0 if maximise else 1.0
    return sorted(rows, key=lambda row: (math.isnan(row.mean), not row.complete, sign * row.mean))


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the mean and its 95 % interval by Student's t; a bootstrap of few seeds never leaves their range."""
    if not values:
        return math.nan, math.nan, math.nan
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan, math.nan
    from scipy import stats  # this import takes most of a second, and the checks do not need it

    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return mean, mean - half, mean + half


def best_of_each(rows: Sequence[Ranked], key: str) -> list[Ranked]:
    """Return the first row of every value of a setting."""
    return list({repr(row.settings[key]): row for row in reversed(rows)}.values())[::-1]


def table(rows: Sequence[Ranked], metric: str, title: str) -> Table:
    """Build the table of the ranking for a terminal, without settings that are the same in all rows."""
    keys = [key for key in rows[0].settings if len({repr(row.settings[key]) for row in rows}) > 1]
    found = Table(title=Text(title), title_justify="left")
    for name in ("", *keys, metric, "95 % interval", "trials"):
        found.add_column(name, justify="left" if name in keys else "right", overflow="fold")
    for place, row in enumerate(rows, 1):
        known = not math.isnan(row.mean)
        interval = "" if math.isnan(row.low) else f"[{row.low:.4g}, {row.high:.4g}]"
        counts = str(row.trials) if row.complete else f"{row.finished} of {row.trials}"
        counts += f", {row.stopped} stopped early" if row.stopped else ""
        mean = f"{row.mean:.4g}" if known else "-"
        cells = [str(place) if known else "-", *(str(row.settings[key]) for key in keys), mean, interval, counts]
        found.add_row(*map(Text, cells))  # Rich would read the brackets of an interval as markup
    return found


def records(rows: Sequence[Ranked]) -> list[dict[str, Any]]:
    """Return the ranking as plain records."""
    return [
        {
            "rank": place if not math.isnan(row.mean) else None,
            **row.settings,
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
            "finished": row.finished,
            "trials": row.trials,
            "stopped_early": row.stopped,
        }
        for place, row in enumerate(rows, 1)
    ]


def write_csv(rows: Sequence[Ranked], path: Path) -> None:
    """Write the ranking as a CSV file; unknown values are empty."""
    found = records(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, found[0].keys())
        writer.writeheader()
        for record in found:
            known = {k: v for k, v in record.items() if not (isinstance(v, float) and math.isnan(v))}
            writer.writerow(known)


def _unseeded(trial: Trial) -> dict[str, Any]:
    return {key: value for key, value in trial.settings.items() if key.replace("-", "_") not in SEEDS}


def _independent(values: Sequence[tuple[Trial, float]]) -> list[float]:
    """Average the values that share the outermost varying seed: runs of one world are not independent."""
    for key in SEEDS:
        groups: dict[Any, list[float]] = {}
        for trial, value in values:
            groups.setdefault(trial.settings.get(key), []).append(value)
        if len(groups) > 1:
            return [math.fsum(group) / len(group) for group in groups.values()]
    return [value for _, value in values]
