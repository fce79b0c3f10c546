"""Records that ``generate.py`` writes: texts on stdout, or JSON lines in a file that a stopped command can go on with.

While a file is being written, ``FILE.unfinished`` lies beside it and holds the settings it was begun with.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from datamodules.tasks.conversations import row_of
from dinado.durable import write_atomic
from dinado.errors import DataError
from dinado.prompt import Prompt

MARK = ".unfinished"
"""What the name of the file with the settings adds to that of the output."""


class RecordWriter:
    """A writer of records as they come: the text alone to stdout, or all of the record to a file.

    Nothing is changed on disk before the first record is written.

    Args:
        output: the file; None for stdout.
        settings: what decides the records, by the name of an option.
        go_on: continue a file that an earlier command has left.
        overwrite: replace a file that is there.
        as_text: what is printed of a record on stdout; None prints its text.

    Attributes:
        written: number of records in the file, or on stdout.
        rejected: number of them that the oracle rejects.

    Raises:
        DataError: the output is no file in an existing folder, holds something already, or was begun with other
            settings.
    """

    def __init__(
        self,
        output: str | None,
        settings: Mapping[str, Any],
        *,
        go_on: bool = False,
        overwrite: bool = False,
        as_text: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> None:
        self._as_text = as_text
        self.written = self.rejected = 0
        self._file = None if output is None else Path(output)
        self._stream: TextIO | None = sys.stdout if output is None else None
        self._settings = dict(settings)
        self._old: Iterator[dict[str, Any]] = iter(())
        self._end = 0  # bytes of the old file that are kept
        if self._file is None:
            return
        if self._file.is_dir() or not self._file.absolute().parent.is_dir():
            raise DataError(f"--output {output}: name a file in a folder that exists")
        self._plain = self._file.is_file() or not self._file.exists()  # no pipe, terminal or /dev/null
        self._mark = self._file.with_name(self._file.name + MARK)
        if go_on and not self._plain:
            raise DataError(f"--continue: {output} is no file that can be read again; leave it out")
        if self._plain and self._file.exists() and self._file.stat().st_size and not overwrite:
            if not go_on:
                fix = "go on with --continue, or start" if self._mark.exists() else "name another file, or start"
                raise DataError(f"--output {output} holds texts already; {fix} again with --overwrite")
            self._check_settings()
            self._old = self._records()

    @property
    def resumable(self) -> bool:
        """Whether an interrupted command can be continued."""
        return self._file is not None and self._plain

    def known(self, prompts: Sequence[Prompt], each: int) -> int:
        """Read the records of some prompts that the file holds already, and return their number.

        Raises:
            DataError: they belong to other prompts.
        """
        before = self.written
        for prompt in prompts:
            for _ in range(each):
                record = next(self._old, None)
                if record is None:
                    return self.written - before
                wanted = {**prompt.data, "prompt": row_of(prompt)}
                if {key: record.get(key) for key in wanted} != wanted:
                    raise DataError(
                        f"--continue: line {self.written + 1} of {self._file} is not of this input, whose {prompt.id} "
                        "is another prompt; give the same input, or start again with --overwrite"
                    )
                self._count(record)
        return self.written - before

    def write(self, prompt: Prompt, field: str, text: str, more: Mapping[str, Any]) -> dict[str, Any]:
        """Write a text and return its record: the fields of the prompt's row, ``prompt``, the text, and more about it.

        Raises:
            DataError: the row has fields of the names that the record needs, or the disk refuses the write.
        """
        if taken := more.keys() & prompt.data.keys():
            raise DataError(f"--input: {prompt.id} has a field `{min(taken)}`, which records need; rename it")
        record = {**prompt.data, "prompt": row_of(prompt), field: text} | dict(more)
        if self._stream is None:
            self._stream = self._open()
        shown = text if self._as_text is None else self._as_text(record)
        line = shown if self._file is None else json.dumps(record, ensure_ascii=False)
        print(line, file=self._stream, flush=True)
        self._count(record)
        return record

    def finish(self, prompts: int) -> None:
        """Remove the mark of an unfinished file.

        Raises:
            DataError: the file holds records beyond those of the prompts.
        """
        if next(self._old, None) is not None:
            raise DataError(
                f"--continue: {self._file} holds more texts than those of the {prompts} prompts of this input; give "
                "the same input, or start again with --overwrite"
            )
        if self.resumable:
            self._mark.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None and self._stream is not None:
            with suppress(BrokenPipeError):  # every line has been flushed
                self._stream.close()

    def _count(self, record: Mapping[str, Any]) -> None:
        self.written += 1
        self.rejected += record.get("accepted") is False

    def _open(self) -> TextIO:
        assert self._file is not None, "stdout is open"
        if self._end and not self._mark.exists():
            raise DataError(
                f"--continue: {self._file} is finished and has {self.written} texts, and the input goes on after them; "
                "write the rest to a file of its own"
            )
        if self._plain:
            content = json.dumps(self._settings, indent=2).encode() + b"\n"
            write_atomic(self._mark, content, lambda reason: DataError(f"--output {self._file}: {reason}"))
        if self._end:  # what a killed command has left of its last line is dropped
            os.truncate(self._file, self._end)
        return self._file.open("a" if self._end else "w", encoding="utf-8")

    def _check_settings(self) -> None:
        """Raise :class:`DataError` if an unfinished file was begun with other settings."""
        if not self._mark.exists():
            return
        try:
            begun = json.loads(self._mark.read_text(encoding="utf-8"))
            for name in {**begun, **self._settings}:
                old, new = begun.get(name), self._settings.get(name)
                if old != new:
                    raise DataError(
                        f"--continue: {self._file} was begun with {name} {old}, and here it is {new}; give the same, "
                        "or start again with --overwrite"
                    )
        except (AttributeError, TypeError, ValueError, OSError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"--continue: {self._mark} is damaged; start again with --overwrite") from None

    def _records(self) -> Iterator[dict[str, Any]]:
        """Yield the records of whole lines; the file is cut behind the last one that was asked for."""
        assert self._file is not None, "stdout holds no records"
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    raise DataError(
                        f"--continue: line {number} of {self._file} is no record of generate.py; start again with "
                        "--overwrite"
                    )
                self._end += len(line)
                yield record
