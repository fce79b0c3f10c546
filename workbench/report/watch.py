"""The live page of runs that are still training, rewritten whenever a file of one of them changes."""

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
    """A set of runs, each read again only when one of its files has changed."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._read: dict[Path, tuple[tuple[object, ...], Run]] = {}

    def news(self) -> list[Run] | None:
        """Return all runs if any of them has changed, else None.

        Raises:
            CheckpointError: a word matches nothing, or settings cannot be read.
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
    """Keep ``file`` up to date until Ctrl-C; return the exit code.

    Raises:
        CheckpointError: a word matches nothing, or settings cannot be read.
        ConfigError: the runs are not comparable, or none of them has the measure ``by``.
    """
    watched, said = Watched(words), False
    try:
        while True:
            runs = watched.news()
            if runs:
                try:
                    write_page(compare(runs, by), file, seconds)
                except ConfigError:
                    # If no run has been evaluated yet, there is nothing to rank by.
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
