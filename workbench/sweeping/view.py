"""The display of a running sweep: a live table on a terminal, lines of text elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from workbench.sweeping.sweep_folder import FAILED, Outcome
from workbench.sweeping.trials import Trial

LATEST = 6


@dataclass(frozen=True)
class Progress:
    """A running trial with its status, its running time in seconds and the last reported value of the metric."""

    trial: Trial
    status: str
    seconds: float
    value: float | None


class View:
    """A display of trials as they start and end.

    Args:
        console: console to print to.
        metric: name of the number that is shown.
        total: number of trials.
    """

    def __init__(self, console: Console, metric: str, total: int) -> None:
        self.console = console
        self.metric = metric
        self.total = total
        self._counts: Counter[str] = Counter()
        self._latest: deque[tuple[Trial, Outcome]] = deque(maxlen=LATEST)
        self._started = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, trial: Trial, what: str) -> None:
        """Print a line about a trial, unless the live table shows it."""
        if not self._live:
            self._line(f"{trial.id} {what}: {trial.label}")

    def note(self, text: str) -> None:
        """Print a line that stays above the live table."""
        self._line(text)

    def over(self, trial: Trial, outcome: Outcome, known: bool) -> None:
        """Show that a trial has ended, in this start or in an earlier one (``known``)."""
        self._counts[outcome.status] += 1
        self._latest.append((trial, outcome))
        value = "" if outcome.value is None else f", {self.metric}={outcome.value:.4g}"
        before = " before" if known else ""
        if not self._live or outcome.status == FAILED:
            done = sum(self._counts.values())
            self._line(f"[{done}/{self.total}] {trial.id} {outcome.status}{before}{value}: {trial.label}")

    def show(self, running: Sequence[Progress]) -> None:
        """Redraw the live table."""
        if not self._live:
            return
        keys = list(running[0].trial.settings) if running else [key for t, _ in self._latest for key in t.settings]
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("trial", *dict.fromkeys(keys), "status", self.metric, "time"):
            table.add_column(name, overflow="fold")
        for trial, outcome in self._latest:
            table.add_row(trial.id, *map(str, trial.settings.values()), outcome.status, _number(outcome.value), "")
        for one in running:
            minutes = f"{one.seconds // 60:.0f}:{one.seconds % 60:02.0f}"
            values = map(str, one.trial.settings.values())
            table.add_row(one.trial.id, *values, one.status, _number(one.value), minutes, style="bold")
        counts = ", ".join(f"{count} {status}" for status, count in self._counts.items()) or "none ended"
        minutes = f"{(time.monotonic() - self._started) / 60:.1f} min"
        head = f"{len(running)} running, {counts}, of {self.total}; {minutes}"
        self._live.update(Group(Text(head), table), refresh=True)

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
