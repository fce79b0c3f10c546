"""The execution of a sweep's trials, several at a time, each in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from dinado.errors import Stopped
from workbench import sweeping
from workbench.processes import PARENT
from workbench.run_status import status
from workbench.sweeping.definition import Definition
from workbench.sweeping.study import Source
from workbench.sweeping.sweep_folder import (
    ELSEWHERE,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    STOPPED_EARLY,
    Outcome,
    SweepFolder,
)
from workbench.sweeping.trials import Trial
from workbench.sweeping.view import Progress, View

TRAIN = Path(str(sweeping.__file__)).parents[2] / "train.py"
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 120.0
"""Seconds that a trial may take to end once it has been asked to stop."""


@dataclass
class _Running:
    """A running trial and its process."""

    trial: Trial
    process: subprocess.Popen[bytes]
    lock: int
    started: float = field(default_factory=time.monotonic)
    size: int = -1
    given_up: float | None = None

    def signal(self, number: int) -> None:
        """Send a signal to the trial's first process, which ends the others."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kill all processes of the trial."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Driver:
    """A driver that runs the trials of a source until none is left.

    Args:
        definition: the sweep.
        source: source of the trials.
        folder: record of the sweep.
        jobs: number of trials that run at once.
        view: display of the progress.
    """

    def __init__(self, definition: Definition, source: Source, folder: SweepFolder, jobs: int, view: View) -> None:
        self.definition = definition
        self.source = source
        self.folder = folder
        self.jobs = jobs
        self.view = view
        self.outcomes: dict[str, Outcome] = {}
        self._records = folder.records()
        self._running: list[_Running] = []
        self._elsewhere: deque[Trial] = deque()
        self._histories: dict[str, list[float]] = {}

    def run(self) -> dict[str, Outcome]:
        """Run the trials that are not finished and return the outcome of every trial, by its id.

        Raises:
            KeyboardInterrupt: the sweep was asked to stop; all trials have ended by then and resume at the next start.
        """
        with _scheduler_stops(), self.view:
            try:
                while self._fill() or self._running or self._elsewhere:
                    time.sleep(POLL_SECONDS)
                    self._look()
            except KeyboardInterrupt as stop:
                self._stop(signal.SIGTERM if isinstance(stop, Stopped) else signal.SIGINT)
                raise
            finally:
                for running in self._running:  # leave no process behind after a bug either
                    running.kill()
        return self.outcomes

    def _fill(self) -> bool:
        """Start trials while fewer than ``jobs`` run; tell whether the source gave one."""
        taken = False
        while len(self._running) < self.jobs and (trial := self.source.ask()) is not None:
            self._begin(trial)
            taken = True
        for _ in range(len(self._elsewhere)):
            if len(self._running) < self.jobs:
                self._begin(self._elsewhere.popleft())
        return taken

    def _begin(self, trial: Trial) -> None:
        """Start a trial, unless it has ended or another sweep runs it."""
        lock = self.folder.lock(trial)
        if lock is None:
            if self.outcomes.get(trial.id) != Outcome(ELSEWHERE):
                self.view.say(trial, ELSEWHERE)
            self.outcomes[trial.id] = Outcome(ELSEWHERE)
            self._elsewhere.append(trial)
            return
        was_elsewhere = self.outcomes.get(trial.id) == Outcome(ELSEWHERE)
        record = self.folder.records().get(trial.id) if was_elsewhere else self._records.get(trial.id)
        outcome = self.folder.outcome(trial, record)
        if outcome.status in (FINISHED, STOPPED_EARLY) or status(trial.run) == FINISHED:
            os.close(lock)
            self._histories[trial.id] = self.folder.history(trial)
            written = record is not None and (record["status"], record.get("metric")) == (
                outcome.status,
                self.folder.metric,
            )
            if not written:  # the trial outlived the sweep that started it, or the metric has changed
                self.folder.write(trial, outcome)
            self._settle(trial, outcome, known=True)
        else:
            self._start(trial, lock)

    def _start(self, trial: Trial, lock: int) -> None:
        """Start the trial's process, which resumes the run of an earlier one."""
        resume = (trial.run / "config.yaml").is_file()
        words = ["--resume", str(trial.run)] if resume else list(trial.words)
        command = [sys.executable, str(TRAIN), *words, "--trainer.progress=false", "--json"]
        with self.folder.log(trial).open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            # In a new session, because Ctrl-C in the terminal would reach the trial twice and stop it without saving.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(trial),
                start_new_session=True,
                pass_fds=[lock],
            )
        self._running.append(_Running(trial, process, lock))
        self._note(trial, Outcome(RUNNING))
        self.view.say(trial, f"resumed at {trial.run}" if resume else "started")

    def _environment(self, trial: Trial) -> dict[str, str]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        defaults = {
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": str(max(1, cores // self.jobs)),
            "WANDB_RUN_GROUP": self.definition.name,
        }
        # WANDB_RUN_ID fixes the run folder in advance. PARENT lets the trial end itself if this process dies.
        return defaults | os.environ | {"WANDB_RUN_ID": trial.run.name, PARENT: str(os.getpid())}

    def _look(self) -> None:
        """Settle trials that have ended, read new metrics, stop trials that Hyperband gives up."""
        for running in list(self._running):
            code = running.process.poll()
            self._read(running)
            if code is not None:
                self._running.remove(running)
                os.close(running.lock)
                self._settle(running.trial, self._ended(running, code))
        if self.definition.hyperband is not None:
            candidates = {running.trial.id for running in self._running if running.given_up is None}
            behind = self.definition.hyperband.to_give_up(candidates, self._histories, self.definition.maximise)
            for running in self._running:
                if running.trial.id in behind:
                    running.given_up = time.monotonic()
                    self._note(running.trial, Outcome(STOPPED_EARLY, self._last(running.trial)))
                    running.signal(signal.SIGTERM)
        for running in self._running:
            if running.given_up is not None and time.monotonic() - running.given_up > PATIENCE_SECONDS:
                running.kill()
        self.view.show([self._progress(running) for running in self._running])

    def _read(self, running: _Running) -> None:
        """Read new metrics of a trial, if the size of the file has changed."""
        try:
            size = (running.trial.run / "metrics.jsonl").stat().st_size
        except OSError:
            return
        if size != running.size:
            running.size = size
            self._histories[running.trial.id] = self.folder.history(running.trial)

    def _ended(self, running: _Running, code: int) -> Outcome:
        """Return the outcome of a trial whose process has ended."""
        trial = running.trial
        if status(trial.run) == FINISHED:
            return self.folder.outcome(trial)
        if running.given_up is not None:
            return Outcome(STOPPED_EARLY, self._last(trial))
        if code in (Stopped.exit_code, 128 + signal.SIGINT):
            return Outcome(INTERRUPTED, self._last(trial))
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome(FAILED, self._last(trial), (how, *self.folder.last_lines(trial)))

    def _settle(self, trial: Trial, outcome: Outcome, known: bool = False) -> None:
        """Record the outcome of a trial that has ended."""
        if not known:
            self._note(trial, outcome)
        self.outcomes[trial.id] = outcome
        self.source.tell(trial, outcome)
        self.view.over(trial, outcome, known)

    def _note(self, trial: Trial, outcome: Outcome) -> None:
        self.folder.write(trial, outcome)
        self.outcomes[trial.id] = outcome

    def _last(self, trial: Trial) -> float | None:
        history = self._histories.get(trial.id)
        return history[-1] if history else None

    def _progress(self, running: _Running) -> Progress:
        word = RUNNING if running.given_up is None else "giving up"
        return Progress(running.trial, word, time.monotonic() - running.started, self._last(running.trial))

    def _stop(self, number: int) -> None:
        """Ask all trials to stop, and wait until they have saved; a second Ctrl-C kills them."""
        if self._running:
            self.view.note(f"stopping {len(self._running)} trials after their step (Ctrl-C again stops at once)")
        for running in self._running:
            running.signal(number)
        try:
            until = time.monotonic() + PATIENCE_SECONDS
            while any(running.process.poll() is None for running in self._running) and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            pass
        for running in self._running:
            running.kill()
            running.process.wait()
            os.close(running.lock)
            self._settle(running.trial, self._ended(running, 128 + signal.SIGINT))
        self._running = []


@contextmanager
def _scheduler_stops() -> Iterator[None]:
    """Raise :class:`Stopped` on a scheduler's SIGTERM or SIGUSR1: the sweep ends as by Ctrl-C, with exit code 75."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
