"""What W&B's client has written, read back with its own message types; its reader is not part of its Python API."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import ArtifactRecord, Record, RunRecord

BLOCK, HEADER = 32768, struct.Struct("<IHB")
"""The file is a LevelDB log: blocks that hold whole records (1) or their first, middle and last parts (2, 3, 4)."""
FIRST, LAST = (1, 2), (1, 4)
OWN = ("_step", "_runtime", "_timestamp", "_wandb", "trainer/global_step")
"""Names that are not ours."""


class Page:
    """One ``run-*.wandb``: what one start of a run has told W&B."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.run = RunRecord()
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[str, ArtifactRecord] = {}
        self.files: list[str] = []
        self.remote = ""
        self.x_axes: dict[str, str] = {}
        self.exit_code: int | None = None
        for record in _records(file.read_bytes()):
            self._take(record)

    @property
    def points(self) -> list[tuple[int, dict[str, Any]]]:
        """Rows of numbers, each with its optimiser step."""
        rows = [(row["trainer/global_step"], {k: v for k, v in row.items() if k not in OWN}) for row in self.history]
        return [(step, row) for step, row in rows if "samples" not in row]

    def _take(self, record: Record) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.run = record.run
            self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            self.history.append(_nested(record.history.item))
        elif kind == "summary":
            self.summary |= _nested(record.summary.update)
        elif kind == "artifact":
            self.artifacts[record.artifact.type] = record.artifact
        elif kind == "files":
            self.files += [item.path for item in record.files.files]
        elif kind == "environment":
            self.remote = record.environment.git.remote_url or self.remote
        elif kind == "metric":
            self.x_axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            self.exit_code = record.exit.exit_code


def pages(run: Path) -> list[Page]:
    """Those of a run folder, in the order of its starts."""
    return [Page(file) for file in sorted(run.glob("wandb/*run-*/run-*.wandb"))]


def texts(file: Path) -> str:
    """Everything in such a file as text."""
    return "\n".join(str(record) for record in _records(file.read_bytes()))


def _records(data: bytes) -> Iterator[Record]:
    assert data[:4] == b":W&B", "another format"
    place, whole = 7, b""
    while place + HEADER.size <= len(data):
        if (left := BLOCK - place % BLOCK) < HEADER.size:
            place += left
            continue
        _, size, kind = HEADER.unpack_from(data, place)
        part = data[place + HEADER.size : place + HEADER.size + size]
        if kind == 0 or len(part) < size:
            return
        place += HEADER.size + size
        whole = part if kind in FIRST else whole + part
        if kind in LAST:
            yield Record.FromString(whole)


def _nested(items: Any) -> dict[str, Any]:
    """Key-value items as a dictionary, the names in a key one level each."""
    found: dict[str, Any] = {}
    for item in items:
        first, *rest = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if rest:
            inner = found.setdefault(first, {})
            if isinstance(inner, dict):
                inner["/".join(rest)] = value
        else:
            found[first] = value
    return found
