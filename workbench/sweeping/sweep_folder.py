"""The folder of a sweep, ``runs/sweeps/<name>/``, and the outcomes of its trials.

The outcome of a trial is read from its run folder; ``trials.jsonl`` adds what is not recorded there, such as early
stopping. Each change of a trial's status appends a line, and the last line about a trial counts.
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
from workbench.plain_files import json_line
from workbench.run_folder import RunFolder
from workbench.run_status import status
from workbench.sweeping.trials import Trial

WAITING, RUNNING, ELSEWHERE = "waiting", "running", "running elsewhere"
FINISHED, FAILED, INTERRUPTED, STOPPED_EARLY = "finished", "failed", "interrupted", "stopped early"
OVER = (FINISHED, FAILED, STOPPED_EARLY)
LAST_LINES = 6


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial.

    Attributes:
        status: one of the constants above.
        value: last reported value of the metric, None where there is none.
        reason: last lines of the output of a failed trial.
    """

    status: str
    value: float | None = None
    reason: tuple[str, ...] = ()


class SweepFolder:
    """The folder with ``sweep.yaml``, ``trials.jsonl``, ``logs/``, ``locks/`` and, at the end, ``ranking.csv``.

    Args:
        path: the folder; nothing is written before :meth:`create`.
        metric: name of the number that ranks the trials.
    """

    def __init__(self, path: Path, metric: str) -> None:
        self.path = path
        self.metric = metric

    def create(self, text: str) -> None:
        """Create the folder and store a copy of the sweep file in it.

        Raises:
            ConfigError: the folder is not writable.
        """
        try:
            for name in ("logs", "locks"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            (self.path / "sweep.yaml").write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}; name a folder to write to with runs=...") from None

    def log(self, trial: Trial) -> Path:
        """Return the file with the output of a trial."""
        return self.path / "logs" / f"{trial.id}.log"

    def lock(self, trial: Trial) -> int | None:
        """Lock a trial and return the file descriptor, None while another sweep or a process left by one runs it.

        The trial's process inherits the open file, so the lock lasts until both processes have ended in any way.
        """
        file = os.open(self.path / "locks" / f"{trial.id}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    def write(self, trial: Trial, outcome: Outcome) -> None:
        """Append a line about a trial to ``trials.jsonl``."""
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
        """Return the last line about every trial, by its id, without lines that a kill truncated."""
        file, found = self.path / "trials.jsonl", {}
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
            try:
                record = json.loads(line)
                found[record["trial"]] = record
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
        return found

    def history(self, trial: Trial) -> list[float]:
        """Return all reported values of the metric."""
        values = [record.get(self.metric) for record in RunFolder(trial.run).metrics()]
        return [float(value) for value in values if isinstance(value, int | float)]

    def outcome(self, trial: Trial, record: dict[str, Any] | None = None) -> Outcome:
        """Return the outcome of a trial that this process is not running.

        Args:
            trial: the trial.
            record: the last line about it in ``trials.jsonl``, if any.
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
        """Return the last non-empty lines of the output of a trial."""
        try:
            text = self.log(trial).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ()
        return tuple([line.rstrip() for line in text.splitlines() if line.strip()][-LAST_LINES:])
