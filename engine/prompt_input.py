"""Prompts for ``generate.py`` from the command line, a file or stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from datamodules.tasks.conversations import MESSAGES, request_of
from datamodules.tasks.json_rows import read_rows
from dinado.errors import DataError
from dinado.prompt import Prompt


def read_prompts(text: str | None, file: str | None) -> list[Prompt]:
    """Read prompts from the command line, a JSON-lines file, or stdin (one per line).

    Raises:
        DataError: there is no prompt, two sources were given, or the file or a line of it is invalid.
    """
    if text is not None and file is not None:
        raise DataError("give --prompt or --input, not both")
    if text is not None:
        _check_utf8("--prompt", text)
        prompts = [Prompt("0", text)]
    elif file is not None:
        prompts = list(_from_jsonl(Path(file)))
    else:
        lines = _lines_of_stdin()
        for number, line in enumerate(lines, 1):
            _check_utf8(f"stdin, line {number}", line)
        prompts = [Prompt(str(i), line.strip()) for i, line in enumerate(lines) if line.strip()]
    if not prompts:
        raise DataError("there is no prompt to answer; give --prompt TEXT, --input FILE, or lines on stdin")
    return prompts


def free_field(prompts: list[Prompt]) -> str:
    """Return the field for the text that is written: ``text``, or ``response`` where rows have a ``text`` of their own.

    Raises:
        DataError: rows have both.
    """
    taken = {name for prompt in prompts for name in prompt.data}
    for name in ("text", "response"):
        if name not in taken:
            return name
    raise DataError("--input: rows have both a field `text` and a field `response`; rename one of them")


def _check_utf8(place: str, text: str) -> None:
    """Refuse bytes that are no UTF-8, which Python reads from a terminal as halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place} is not UTF-8 at character {error.start}") from None


def _lines_of_stdin() -> list[str]:
    try:
        return sys.stdin.read().removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 at byte {error.start}") from None


def _from_jsonl(file: Path) -> Iterator[Prompt]:
    if file.is_dir():
        raise DataError(f"--input {file}: is a folder")
    try:
        for number, (place, row) in enumerate(read_rows(file, "name a file of JSON lines"), 1):
            request = request_of(row, "prompt", place, "a text or a list of messages")
            data = {key: value for key, value in row.items() if key not in ("prompt", MESSAGES)}
            yield Prompt(str(number), request.text, data, request.turns)
    except DataError as error:
        raise DataError(f"--input {error}") from None
