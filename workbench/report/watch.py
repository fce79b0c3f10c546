"""The page of runs that are still training, written again whenever one of them has something new."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dinado.errors import ConfigError
from workbench.report.comparison import compare
from workbench.report.output import write_page
from workbench.report.run_reader import Place, Run, find_runs, read_run

_FILES = ("metrics.jsonl", "STATUS", "config.yaml", "samples/after.jsonl")


class Watched:
    """Runs read once and again only when one of their files has changed."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._read: dict[Path, tuple[tuple[object, ...], Run]] = {}

    def news(self) -> list[Run] | None:
        """All runs if there is anything new about one of them, else None.

        Raises:
            CheckpointError: a word leads nowhere, or settings cannot be read.
        """
        places = find_runs(self._words, empty=True)
        changed = len(places) != len(self._read)
        for place in places:
            signature = _signature(place)
            if self._read.get(place.path, ((), None))[0] != signature:
                self._read[place.path] = (signature, read_run(place.path, live=True))
                changed = True
        self._read = {place.path: self._read[place.path] for place in places}
        return [run for _, run in self._read.values()] if changed else None


def watch(words: Sequence[str], by: str | None, file: Path, seconds: float) -> int:
    """Keep ``file`` up to date until Ctrl-C; returns the exit code.

    Raises:
        CheckpointError: nothing leads to a run at the start.
        ConfigError: the runs were not measured alike, or ``by`` is no number that any can have.
    """
    watched, said = Watched(words), False
    try:
        while True:
            runs = watched.news()
            if runs:
                try:
                    write_page(compare(runs, by), file, seconds)
                except ConfigError:
                    # No run may have been evaluated so far; then there is nothing to rank by yet.
                    if by is None or any("val/success" in run.final for run in runs):
                        raise
                    write_page(compare(runs), file, seconds)
                if not said:
                    print(f"watching {len(runs)} runs; open {file.resolve().as_uri()} in a browser, Ctrl-C ends this")
            elif runs is not None and not said:
                print(f"no run in {' '.join(words)} yet; waiting")
            said = said or runs is not None
            sys.stdout.flush()
            time.sleep(seconds)
    except KeyboardInterrupt:
        print(
            f"stopped watching; for the final page: python compare.py {' '.join(words)} --html {file}", file=sys.stderr
        )
        return 130


def _signature(place: Place) -> tuple[object, ...]:
    found: list[object] = []
    for name in _FILES:
        try:
            stat = (place.path / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_mtime_ns, stat.st_size))
    return tuple(found)
