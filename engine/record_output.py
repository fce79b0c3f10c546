"""Records that ``generate.py`` writes: texts on stdout, or JSON lines in a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datamodules.tasks.conversations import row_of
from dinado.errors import DataError
from dinado.prompt import Prompt


def check_output(output: str | None) -> None:
    """Raise :class:`DataError` unless ``output`` is a file in an existing folder."""
    if output and (Path(output).is_dir() or not Path(output).absolute().parent.is_dir()):
        raise DataError(f"--output {output}: name a file in a folder that exists")


class RecordWriter:
    """Writes records as they come: the text alone to stdout, or all of the record to a file.

    Args:
        output: the file; None for stdout.
        field: the field of a record that holds the text.

    Attributes:
        records: all that has been written.
    """

    def __init__(self, output: str | None, field: str) -> None:
        self.records: list[dict[str, Any]] = []
        self._to_file, self._field = bool(output), field
        self._stream = open(output, "w", encoding="utf-8") if output else sys.stdout  # noqa: SIM115

    def write(self, prompt: Prompt, text: str, more: dict[str, Any]) -> None:
        """Write a text: the fields of the prompt's row, ``prompt``, the text, and more about it."""
        record = {**prompt.data, "prompt": row_of(prompt), self._field: text} | more
        self.records.append(record)
        line = json.dumps(record, ensure_ascii=False) if self._to_file else text
        print(line, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._to_file:
            self._stream.close()
