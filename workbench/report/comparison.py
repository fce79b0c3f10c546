"""The comparison of a set of runs as data: groups, summaries, ranking, tests and notes; other modules display it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dinado.errors import CheckpointError, ConfigError
from dinado.evaluation.best_of_n import Point, frontier
from dinado.evaluation.measures import MEASURES, Measure, measure
from workbench.report import agreement
from workbench.report.groups import Group, group
from workbench.report.run_reader import Place, Run, read_run
from workbench.report.statistics import Summary, Test, compare_groups, holm, summarise


@dataclass
class Comparison:
    """Groups of runs with their summaries, ranking and tests.

    Attributes:
        groups: in the order of the ranking, best first.
        measures: the measures that at least one run has.
        summaries: by the label of the group and the key of the measure.
        ranked_by: the measure that orders the groups, None when no run has been evaluated.
        tests: by the key of the measure and the label of a group: the best group against that group.
        notes: runs that were left out, and remarks for the reader.
    """

    groups: list[Group]
    measures: list[Measure]
    summaries: dict[str, dict[str, Summary]]
    ranked_by: Measure | None
    tests: dict[str, dict[str, Test]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """All runs of all groups."""
        return [run for one in self.groups for run in one.runs]

    @property
    def best(self) -> Group | None:
        """The first group of the ranking, None when nothing is ranked."""
        measured = self.ranked_by and self.groups[0].label in self.summaries
        return self.groups[0] if measured and self.ranked_by.key in self.summaries[self.groups[0].label] else None  # type: ignore[union-attr]

    @cached_property
    def best_of_n(self) -> list[Point]:
        """Best-of-n of the base, from the held-out rollouts that all runs of a comparison share; empty without them."""
        counts = next((run.base_counts for run in self.runs if run.base_counts), [])
        return frontier(counts) if counts else []

    @property
    def verdict(self) -> str:
        """One sentence: the best group, its interval, and the groups that no test separates from it."""
        best, by = self.best, self.ranked_by
        if best is None or by is None:
            return "No run has been evaluated yet."
        one = self.summaries[best.label][by.key]
        sentence = (
            f"Best by {by.label} ({'more' if by.better > 0 else 'less'} is better): {best.label}, {said(one, by)}"
        )
        if one.seeds > 1:
            sentence += f" over {one.seeds} seeds"
        elif not math.isnan(one.low):
            sentence += ", one seed, interval over prompts"
        tests = self.tests.get(by.key, {})
        close = [label for label, test in tests.items() if test.p >= 0.05]
        if len(self.groups) == 1:
            return f"{sentence}."
        if not tests:
            return f"{sentence}. One run a group and no shared prompts leave nothing to test."
        over = next(iter(tests.values())).over
        if not close:
            return f"{sentence}; ahead of every other group (permutation tests over {over}, p < 0.05)."
        shown = ", ".join(close[:3]) + (f" and {len(close) - 3} more" if len(close) > 3 else "")
        few = min(tests[label].least_p for label in close) >= 0.05
        why = f"too few {over} for a test to tell" if few else f"permutation tests over {over}, p >= 0.05"
        return f"{sentence}; not told apart from {shown} ({why})."


def said(summary: Summary, of: Measure) -> str:
    """Format the mean with its interval."""
    mean = f"{summary.mean:.{of.digits}f}"
    return mean if math.isnan(summary.low) else f"{mean} {ends(summary, of)}"


def ends(summary: Summary, of: Measure) -> str:
    """Format the interval, empty where it is unknown."""
    return "" if math.isnan(summary.low) else f"[{summary.low:.{of.digits}f}, {summary.high:.{of.digits}f}]"


def read_all(places: Sequence[Place], *, live: bool = False) -> tuple[list[Run], list[str]]:
    """Read runs, and return a note for each unfinished run that was found in a folder and is left out.

    Args:
        live: keep unfinished runs as well.

    Raises:
        CheckpointError: a run that the user named has not finished, or no run has.
        DataError: a file of a run is damaged.
    """
    runs, notes = [], []
    for place in places:
        run = read_run(place.path, live=live)
        why = "" if run.finished else f"has not finished ({run.status})"
        if run.finished and "val/success" not in run.final:
            why = "says finished, but its metrics.jsonl holds no evaluation (val/success)"
        if live or not why:
            runs.append(run)
        elif place.named:
            raise CheckpointError(
                f"{place.path} {why}; train.py --resume goes on with a run, --watch shows it as it is, and naming the "
                "folder around it leaves it out"
            )
        else:
            notes.append(f"left out: {place.path} {why}")
    if places and not runs:
        raise CheckpointError(f"none of the runs can be compared: {notes[0].partition(': ')[2]}")
    return runs, notes


def compare(runs: Sequence[Run], by: str | None = None, notes: Sequence[str] = ()) -> Comparison:
    """Group, summarise, rank and test runs.

    Args:
        by: key of the measure to rank by, or the part of it after the slash; None takes KL to the optimum where all
            evaluated runs have it, else success.

    Raises:
        ConfigError: the runs are not comparable, or none has the measure to rank by.
    """
    agreement.check(runs)
    groups, dropped = group(runs)
    measures = [one for one in MEASURES if one.in_table and any(one.key in run.final for run in runs)]
    summaries = {
        one.label: {m.key: s for m in measures if (s := summarise(one.runs, m.key)) is not None} for one in groups
    }
    ranked_by = _ranking(runs, measures, by)
    if ranked_by is not None:
        key, sign = ranked_by.key, -ranked_by.better

        def place(one: Group) -> float:
            summary = summaries[one.label].get(key)
            return math.inf if summary is None else sign * summary.mean

        groups.sort(key=place)
    said_before = [*notes, *dropped, *_code_note(runs)]
    result = Comparison(groups, measures, summaries, ranked_by, {}, said_before)
    if result.best is not None and ranked_by is not None:
        for key in dict.fromkeys((ranked_by.key, "val/success", "val/kl_to_optimum")):
            result.tests[key] = _tests(groups, key)
    return result


def _tests(groups: Sequence[Group], key: str) -> dict[str, Test]:
    found = {one.label: compare_groups(groups[0].runs, one.runs, key) for one in groups[1:]}
    made = {label: test for label, test in found.items() if test is not None}
    corrected = holm([test.p for test in made.values()])
    return {
        label: test._replace(p=p, least_p=min(1.0, test.least_p * len(made)))
        for (label, test), p in zip(made.items(), corrected, strict=True)
    }


def _ranking(runs: Sequence[Run], measures: Sequence[Measure], by: str | None) -> Measure | None:
    if by is not None:
        for one in measures:
            if by in (one.key, one.key.partition("/")[2]) and one.better:
                return one
        names = ", ".join(one.key for one in measures if one.better)
        raise ConfigError(f"--by {by}: choose one of {names or 'the numbers that runs have; these have none yet'}")
    evaluated = [run for run in runs if "val/success" in run.final] or runs
    if any("val/kl_to_optimum" in run.final for run in runs) and all("val/kl_to_optimum" in r.final for r in evaluated):
        return measure("val/kl_to_optimum")
    return measure("val/success") if any("val/success" in run.final for run in runs) else None


def _code_note(runs: Sequence[Run]) -> list[str]:
    versions = sorted({run.code for run in runs if run.code})
    if len(versions) < 2:
        return []
    return [f"the runs were made by {len(versions)} versions of the code: {', '.join(versions[:5])}"]
