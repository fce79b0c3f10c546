"""Groups of runs that differ in their seed alone, each with a label made of the settings that set it apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.report.agreement import differing
from workbench.report.run_reader import Run
from workbench.settings import schema


@dataclass
class Group:
    """Runs of one variant.

    Attributes:
        label: the fewest settings that distinguish it from the other groups.
        runs: one for each seed.
        settings: its value of every key that differs between groups.
    """

    label: str
    runs: list[Run]
    settings: dict[str, str]


def group(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Group runs by their settings, and return a note for each run that was left out.

    Of two runs with the same settings and seed the later one counts: a repetition adds no information.
    """
    keys = method_keys(runs)
    gathered: dict[tuple[str, ...], dict[str, Run]] = {}
    notes = []
    for run in runs:
        seeds = gathered.setdefault(tuple(run.settings[key] for key in keys), {})
        if run.seed in seeds:
            notes.append(f"{seeds[run.seed].path} has the settings and the seed of {run.path}, which counts")
        seeds[run.seed] = run
    names = short_keys(list(gathered), keys)
    groups = []
    for values, seeds in gathered.items():
        settings = dict(zip(keys, values, strict=True))
        groups.append(Group(_label(settings, names, runs[0]), list(seeds.values()), settings))
    return groups, notes


def method_keys(runs: Sequence[Run]) -> list[str]:
    """List the settings in which runs differ and that may affect the outcome."""
    leaves = schema.leaves()
    return [key for key in differing(runs) if key not in leaves or leaves[key].role == "outcome"]


def short_keys(rows: Sequence[tuple[str, ...]], keys: Sequence[str]) -> list[str]:
    """List few keys that distinguish all rows: a key is taken if it splits rows that the earlier ones do not."""
    order = sorted(range(len(keys)), key=lambda i: (keys[i] != "method", i))
    chosen: list[int] = []
    kinds = 1
    for index in order:
        split = len({tuple(row[i] for i in (*chosen, index)) for row in rows})
        if split > kinds:
            chosen.append(index)
            kinds = split
    return [keys[index] for index in chosen]


def _label(settings: dict[str, str], names: Sequence[str], run: Run) -> str:
    if not names:
        return run.settings["method"]
    last = [name.rpartition(".")[2] for name in names]
    words = [
        settings[name] if name == "method" else f"{short if last.count(short) == 1 else name}={settings[name]}"
        for name, short in zip(names, last, strict=True)
    ]
    return " ".join(words)
