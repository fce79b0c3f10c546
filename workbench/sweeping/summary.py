"""The output of a sweep before and after its trials: the list of trials, the failures, the ranking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from dinado.errors import ConfigError
from workbench.sweeping import ranking
from workbench.sweeping.definition import Definition, shipped
from workbench.sweeping.study import Bayes, Listed
from workbench.sweeping.sweep_folder import FAILED, FINISHED, STOPPED_EARLY, WAITING, Outcome, SweepFolder


@dataclass(frozen=True)
class Result:
    """The result of a sweep: the exit code, and the record of ``--json``."""

    exit_code: int
    record: dict[str, Any]


def listing() -> str:
    """List the sweeps that ship with the project, one per line."""
    return "\n".join(f"  {name:<24}{description}" for name, description in shipped().items())


def check_per(sweep: Definition, key: str | None) -> None:
    """Check that the ranking can be split by a setting.

    Raises:
        ConfigError: the setting is not swept.
    """
    keys = [parameter.key for parameter in sweep.parameters if parameter.key not in ranking.SEEDS]
    if key is not None and key not in keys:
        raise ConfigError(f"--per {key}: {sweep.label} sweeps {', '.join(keys)}")


def dry_run(
    console: Console, sweep: Definition, source: Bayes | Listed, folder: SweepFolder, count: int | None
) -> None:
    """List the trials with their outcomes so far; for a search, print what it would draw from."""
    if isinstance(source, Bayes):
        names = ", ".join(parameter.key for parameter in sweep.parameters)
        console.print(f"{sweep.name}: {count} trials over {names}; each depends on those before", soft_wrap=True)
        return
    found, records = source.all(), folder.records()
    for trial in found:
        state = folder.outcome(trial, records.get(trial.id)).status
        console.print(f"{trial.id}  {state:<14}{trial.label}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{len(found)} trials of {found[0].words[0]}, ranked by {sweep.metric}, in {folder.path}", soft_wrap=True
    )


def finish(
    console: Console,
    sweep: Definition,
    source: Bayes | Listed,
    folder: SweepFolder,
    outcomes: Mapping[str, Outcome],
    per: str | None,
) -> Result:
    """List the failed trials, rank the finished ones, write ``ranking.csv``."""
    trials, records = source.all(), folder.records()
    known = {t.id: outcomes.get(t.id) or folder.outcome(t, records.get(t.id)) for t in trials}
    refused = source.refused if isinstance(source, Bayes) else []
    for line in refused:
        console.print(f"refused: {line}", markup=False, highlight=False, soft_wrap=True)
    lost = [trial for trial in trials if known[trial.id].status not in (FINISHED, STOPPED_EARLY, WAITING)]
    for trial in lost:
        outcome = known[trial.id]
        console.print(f"{outcome.status}: {trial.label}", style="bold", markup=False, highlight=False, soft_wrap=True)
        for line in (*outcome.reason, f"all of it: {folder.log(trial)}"):
            console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
    rows = ranking.rank(trials, known, sweep.maximise)
    if rows:
        ranking.write_csv(rows, folder.path / "ranking.csv")
        shown = ranking.best_of_each(rows, per) if per else rows
        best = f"best of each {per}, " if per else ""
        console.print(ranking.table(shown, sweep.metric, f"{sweep.name}: {best}mean over seeds"))
        console.print(f"{folder.path / 'ranking.csv'}", soft_wrap=True)
    counts = {word: sum(outcome.status == word for outcome in known.values()) for word in (FINISHED, STOPPED_EARLY)}
    if lost:
        console.print(f"{len(lost)} of {len(trials)} trials have no result; the same command tries them again")
    record = {
        "sweep": str(folder.path),
        "metric": sweep.metric,
        "trials": len(trials),
        "finished": counts[FINISHED],
        "stopped_early": counts[STOPPED_EARLY],
        FAILED: len(lost),
        "ranking": ranking.records(rows),
    }
    return Result(1 if lost else 0, record)
