"""The record of a sweep, ``runs/sweeps/<name>/``, and what it says about a trial.

What a trial has come to is read from its own run folder; ``trials.jsonl`` adds what only the sweep knows. A line is
written whenever something happens to a trial, and the last line about one counts.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinado.errors import ConfigError
from workbench.run_folder import RunFolder, json_line, status
from workbench.sweeping.trials import Trial

WAITING, RUNNING, ELSEWHERE = "waiting", "running", "running elsewhere"
FINISHED, FAILED, INTERRUPTED, STOPPED_EARLY = "finished", "failed", "interrupted", "stopped early"
OVER = (FINISHED, FAILED, STOPPED_EARLY)
LAST_LINES = 6


@dataclass(frozen=True)
class Outcome:
    """What a trial has come to.

    Attributes:
        status: one of the words above.
        value: the metric when it was last reported, None where it never was.
        reason: last lines of one that failed.
    """

    status: str
    value: float | None = None
    reason: tuple[str, ...] = ()


class SweepFolder:
    """``sweep.yaml``, ``trials.jsonl``, ``logs/``, ``locks/`` and, at the end, ``ranking.csv``.

    Args:
        path: the folder; nothing is written before :meth:`create`.
        metric: the number that trials are ranked by.
    """

    def __init__(self, path: Path, metric: str) -> None:
        self.path = path
        self.metric = metric

    def create(self, text: str) -> None:
        """Make the folder and keep a copy of the sweep file.

        Raises:
            ConfigError: nothing can be written there.
        """
        try:
            for name in ("logs", "locks"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            (self.path / "sweep.yaml").write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}; name a folder to write to with runs=...") from None

    def log(self, trial: Trial) -> Path:
        """Everything a trial prints."""
        return self.path / "logs" / f"{trial.id}.log"

    def lock(self, trial: Trial) -> int | None:
        """Claim a trial; None while another sweep, or a process that outlived one, works on it.

        The lock belongs to the open file, which the trial's process inherits: it ends when both have ended, however.
        """
        file = os.open(self.path / "locks" / f"{trial.id}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    def write(self, trial: Trial, outcome: Outcome) -> None:
        """Add a line about a trial."""
        record = {
            "trial": trial.id,
            "status": outcome.status,
            "settings": trial.settings,
            "run": str(trial.run),
            "metric": self.metric,
            "value": outcome.value,
            "reason": "\n".join(outcome.reason) or None,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        with (self.path / "trials.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{json_line(record)}\n")

    def records(self) -> dict[str, dict[str, Any]]:
        """The last line about every trial, by its id; lines that a kill cut short are left out."""
        file, found = self.path / "trials.jsonl", {}
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
            try:
                record = json.loads(line)
                found[record["trial"]] = record
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
        return found

    def history(self, trial: Trial) -> list[float]:
        """The metric each time that it was reported."""
        values = [record.get(self.metric) for record in RunFolder(trial.run).metrics()]
        return [float(value) for value in values if isinstance(value, int | float)]

    def outcome(self, trial: Trial, record: dict[str, Any] | None = None) -> Outcome:
        """What a trial that does not run here has come to.

        Args:
            trial: it.
            record: the last line about it.
        """
        if status(trial.run) == FINISHED:
            records = RunFolder(trial.run).metrics()
            value = records[-1].get(self.metric) if records else None
            if isinstance(value, int | float):
                return Outcome(FINISHED, float(value))
            names = tuple(key for key in records[-1] if key != "step") if records else ()
            close = difflib.get_close_matches(self.metric, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            return Outcome(FAILED, reason=(f"it has no number called {self.metric}{hint}",))
        if record is not None and record["status"] in (STOPPED_EARLY, FAILED):
            return Outcome(record["status"], record.get("value"), tuple((record.get("reason") or "").splitlines()))
        return Outcome(WAITING)

    def last_lines(self, trial: Trial) -> tuple[str, ...]:
        """The end of what a trial printed."""
        try:
            text = self.log(trial).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ()
        return tuple([line.rstrip() for line in text.splitlines() if line.strip()][-LAST_LINES:])
