"""The ledger of records sent to W&B, which keeps everything: a resumed run must not send a record twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


class WandbLedger:
    """The records sent to W&B over all starts of a run, each identified by its step and the names of its numbers.

    A record is noted before it is sent, so that a kill in between loses one record and never duplicates one.

    Attributes:
        rows: number of records.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._records: set[tuple[int, frozenset[str]]] = set()
        self.rows = 0
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
            try:
                noted = json.loads(line)
                self._add(noted["step"], noted["names"])
            except (ValueError, KeyError, TypeError):  # truncated by a kill, so it was not sent
                continue

    def note(self, step: int, names: Iterable[str]) -> bool:
        """Note a record as sent, and tell whether it is new."""
        names = sorted(names)
        if (step, frozenset(names)) in self._records:
            return False
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            # The line break comes first, so that a line that a kill truncated stays separate.
            file.write("\n" + json.dumps({"step": step, "names": names}))
        self._add(step, names)
        return True

    def _add(self, step: int, names: Iterable[str]) -> None:
        self._records.add((step, frozenset(names)))
        self.rows += 1
