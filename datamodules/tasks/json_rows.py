"""Objects of a JSON-lines file and fields of them, with errors that name the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinado.errors import DataError

Row = dict[str, Any]


def read_rows(path: Path, fix: str = "check task.path, task.val_path and data.root") -> Iterator[tuple[str, Row]]:
    """Yield the objects of a JSON-lines file, each with its place for error messages; blank lines are skipped.

    A line is read when it is asked for.

    Args:
        fix: what to do about a file that does not exist.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        # A line ends in a line feed alone, as in binary files: JSON text may hold Unicode's other line ends.
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                place = f"{path} line {number}"
                if (row := row_in(line, place)) is not None:
                    yield place, row
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; {fix}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def row_in(line: bytes, place: str) -> Row | None:
    """Return the JSON object of a line, None for a blank line; a byte order mark is taken.

    Raises:
        DataError: the line is not a JSON object in UTF-8.
    """
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 text (byte {error.start}); convert it") from None
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise DataError(f"{place} is not JSON that can be read: it is nested too deeply") from None
    if not isinstance(row, dict):
        raise DataError(f'{place} is not a JSON object; write one {{"field": value}} a line')
    _check_text(text, row, place)
    return row


def text_of(row: Row, field: str, place: str, setting: str) -> str:
    """Return a field that must be a text that is not blank; ``setting`` is the config key that names the field."""
    return not_blank(field_of(row, field, place, setting), field, place)


def field_of(row: Row, field: str, place: str, setting: str) -> Any:
    """Return a field that must be there; ``setting`` is the config key that names it."""
    if field not in row:
        raise DataError(f"{place} has no field {field!r} ({setting}); it has {', '.join(map(repr, row)) or 'none'}")
    return row[field]


def not_blank(value: Any, field: str, place: str) -> str:
    """Return the value of a field if it is a text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: field {field!r} must be a text that is not blank")
    return value


def texts_of(row: Row, field: str, place: str) -> list[str]:
    """Return a field that holds a text or a list of texts; [] when it is absent or null."""
    value = row.get(field)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place}: field {field!r} must be a text or a list of texts")
    return texts


def _check_text(line: str, row: Row, place: str) -> None:
    """Refuse half of a surrogate pair, such as ``\\ud83d``, which cannot be encoded."""
    if "\\u" not in line:
        return
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(
            f"{place}: {half!r} is half of a surrogate pair and no text; write the character itself"
        ) from None
