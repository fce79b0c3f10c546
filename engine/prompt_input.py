"""Prompts for ``generate.py`` from the command line, a file or stdin, read as they are asked for."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from datamodules.tasks.conversations import MESSAGES, request_of
from datamodules.tasks.json_rows import Row, read_rows, row_in
from dinado.errors import DataError
from dinado.prompt import Prompt
from engine.line_stream import LineStream


class PromptSource:
    """Prompts in the order in which they come.

    Args:
        prompts: the prompts, None for a line that holds none.
        ready: tells whether the next line is there already; one that is not is not waited for once there is a prompt.
        total: number of prompts, where it is known before they are read.
        fields: all fields of the rows, where they are known before; else those of the first prompts count.
        live: whether prompts may come slowly, from a pipe or a terminal.

    Attributes:
        field: field of a record for the text: ``text``, or ``response`` where rows have a ``text`` of their own; None
            until it is known.
    """

    def __init__(
        self,
        prompts: Iterator[Prompt | None],
        ready: Callable[[], bool] = lambda: True,
        *,
        total: int | None = None,
        fields: Collection[str] | None = None,
        live: bool = False,
    ) -> None:
        self.total, self.live = total, live
        self.field = None if fields is None else free_field(fields)
        self._prompts, self._ready = prompts, ready
        self._error: DataError | None = None

    def take(self, most: int) -> list[Prompt]:
        """Return the next prompts, as many as are there but at least one; none at the end.

        Raises:
            DataError: the next line is invalid. Prompts before it are returned first.
        """
        if self._error is not None:
            raise self._error
        found: list[Prompt] = []
        while len(found) < most and (not found or self._ready()):
            try:
                prompt = next(self._prompts)
                if prompt is not None and self.field is not None and self.field in prompt.data:
                    raise DataError(
                        f"--input: {prompt.id} has a field `{self.field}`, and texts have been written under that "
                        "name; rename it, or give a file that can be read twice"
                    )
            except StopIteration:
                break
            except DataError as error:
                if not found:
                    raise
                self._error = error
                break
            if prompt is not None:
                found.append(prompt)
        if self.field is None:
            self.field = free_field({name for prompt in found for name in prompt.data})
        return found


def open_prompts(text: str | None, file: str | None) -> PromptSource:
    """Open prompts of the command line, a JSON-lines file, or stdin (one per line).

    A file is checked as a whole before its first prompt is returned; a pipe cannot be.

    Raises:
        DataError: two sources were given, or the file or a line of it is invalid.
    """
    if text is not None and file is not None:
        raise DataError("give --prompt or --input, not both")
    if text is not None:
        _check_utf8(text)
        return PromptSource(iter([Prompt("0", text)]), total=1, fields=())
    if file is not None:
        return _rows_of(Path(file))
    lines = LineStream.of_text(sys.stdin)
    return PromptSource(
        _texts(lines, getattr(sys.stdin, "encoding", None) or "utf-8"), lines.ready, fields=(), live=True
    )


def free_field(taken: Collection[str]) -> str:
    """Return the field for the text that is written: ``text``, or ``response`` where that is taken.

    Raises:
        DataError: both are taken.
    """
    for name in ("text", "response"):
        if name not in taken:
            return name
    raise DataError("--input: rows have both a field `text` and a field `response`; rename one of them")


def _check_utf8(text: str) -> None:
    """Refuse bytes that are no UTF-8, which Python reads from a command line as halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"--prompt is not UTF-8 at character {error.start}") from None


def _texts(lines: LineStream, encoding: str) -> Iterator[Prompt | None]:
    """Yield the prompts of lines of text, with the encoding of the locale; an unknown one is UTF-8."""
    unicode = codecs.lookup(encoding).name in ("utf-8", "ascii")
    number = 0
    while (line := lines.next_line()) is not None:
        number += 1
        try:
            text = line.decode("utf-8" if unicode else encoding)
        except UnicodeDecodeError as error:
            kind = "UTF-8" if unicode else encoding
            raise DataError(f"stdin, line {number} is not {kind} at byte {error.start}") from None
        text = text.removeprefix("\ufeff" if number == 1 else "").strip()
        yield Prompt(f"line {number}", text) if text else None


def _rows_of(file: Path) -> PromptSource:
    if file.is_dir():
        raise DataError(f"--input {file}: is a folder")
    total, fields = None, None
    live = file.exists() and not file.is_file()
    if not live:
        total, fields = _scan(file)
    try:
        lines = LineStream(os.open(file, os.O_RDONLY))
    except OSError as error:
        raise DataError(f"--input {file} cannot be read: {error.strerror}") from None
    return PromptSource(_requests(lines, file), lines.ready, total=total, fields=fields, live=live)


def _scan(file: Path) -> tuple[int, set[str]]:
    """Check every line of a file; return the number of its prompts and their fields."""
    total, fields = 0, set[str]()
    try:
        for place, row in read_rows(file, "name a file of JSON lines"):
            fields |= _prompt_of(row, place, 0).data.keys()
            total += 1
    except DataError as error:
        raise DataError(f"--input {error}") from None
    return total, fields


def _requests(lines: LineStream, file: Path) -> Iterator[Prompt | None]:
    number = 0
    while (line := lines.next_line()) is not None:
        number += 1
        place = f"{file} line {number}"
        try:
            row = row_in(line, place)
            yield None if row is None else _prompt_of(row, place, number)
        except DataError as error:
            raise DataError(f"--input {error}") from None


def _prompt_of(row: Row, place: str, number: int) -> Prompt:
    request = request_of(row, "prompt", place, "a text or a list of messages")
    data = {key: value for key, value in row.items() if key not in ("prompt", MESSAGES)}
    return Prompt(f"line {number}", request.text, data, request.turns)
