"""What has been given to W&B, which forgets nothing: a run that goes on from an older step must not give it twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


class Given:
    """Records that W&B has, over all starts of a run, each by its step and the names in it.

    A record is noted before it is given, so that a kill in between costs W&B one record and never makes it two.

    Attributes:
        rows: how many there are.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._records: set[tuple[int, frozenset[str]]] = set()
        self.rows = 0
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
            try:
                noted = json.loads(line)
                self._add(noted["step"], noted["names"])
            except (ValueError, KeyError, TypeError):  # cut short by a kill, so it was not given
                continue

    def note(self, step: int, names: Iterable[str]) -> bool:
        """Whether such a record is new; if so it counts as given from now on."""
        names = sorted(names)
        if (step, frozenset(names)) in self._records:
            return False
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            # The line break comes first: a line that a kill cut short stays alone.
            file.write("\n" + json.dumps({"step": step, "names": names}))
        self._add(step, names)
        return True

    def _add(self, step: int, names: Iterable[str]) -> None:
        self._records.add((step, frozenset(names)))
        self.rows += 1
