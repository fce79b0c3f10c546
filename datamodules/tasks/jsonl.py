"""Prompts from the user's own file, one JSON object per line.

Fields: the prompt (``task.prompt_field``), optionally ``id`` and references (``task.references_field``, a text or a
list of texts). Every other field is kept in ``Prompt.data``, where the oracle finds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.tasks.task import TaskSource
from dinado.errors import DataError
from dinado.prompt import Prompt
from workbench.settings.data_settings import DataConfig
from workbench.settings.tasks import TaskConfig


def source(task: TaskConfig, data: DataConfig) -> TaskSource:
    """Return the prompts of ``task.path``; ``task.val_path``, or else the end of ``task.path``, is held out."""
    held_out = data.val_prompts
    if task.path is None:
        raise DataError("task jsonl needs a file of prompts; set task.path")
    prompts = _prompts(Path(task.path), task, "train")
    if task.val_path is not None:
        return TaskSource(prompts, _prompts(Path(task.val_path), task, "val"), oracle=None, identity=identity)
    if not 0 < held_out <= len(prompts) / 2:
        raise DataError(
            f"{task.path} has {len(prompts)} prompts, of which data.val_prompts={held_out} cannot be held out; "
            "take between 1 and half of them, or set task.val_path to a file of held-out prompts"
        )
    return TaskSource(prompts[:-held_out], prompts[-held_out:], oracle=None, identity=identity)


def identity(prompt: Prompt) -> str:
    """Return the text of the prompt, normalised in case and spacing."""
    return " ".join(prompt.text.casefold().split())


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON-lines file, each with its place for error messages; blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        # A byte order mark is taken. A line ends in a line feed alone: JSON text may hold Unicode's other line ends.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check task.path, task.val_path and data.root") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place} is not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(row, dict):
            raise DataError(f'{place} is not a JSON object; write one {{"field": value}} a line')
        check_text(line, row, place)
        yield place, row


def check_text(line: str, row: Any, place: str) -> None:
    """Check that a line of JSON holds text alone; half of a surrogate pair, such as ``\\ud83d``, is none.

    Raises:
        DataError: it holds something that cannot be encoded.
    """
    if "\\u" not in line:
        return
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(
            f"{place}: {half!r} is half of a surrogate pair and no text; write the character itself"
        ) from None


def text_of(row: dict[str, Any], field: str, place: str, setting: str) -> str:
    """Return a field that must be a text that is not blank; ``setting`` is the config key that names the field."""
    if field not in row:
        raise DataError(f"{place} has no field {field!r} ({setting}); it has {', '.join(map(repr, row)) or 'none'}")
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: field {field!r} must be a text that is not blank")
    return value


def texts_of(row: dict[str, Any], field: str, place: str) -> list[str]:
    """Return a field that holds a text or a list of texts; [] when it is absent or null."""
    value = row.get(field)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place}: field {field!r} must be a text or a list of texts")
    return texts


def _prompts(path: Path, task: TaskConfig, split: str) -> list[Prompt]:
    prompts = []
    for number, (place, row) in enumerate(read_rows(path)):
        text = text_of(row, task.prompt_field, place, "task.prompt_field")
        data = {key: value for key, value in row.items() if key not in (task.prompt_field, task.references_field, "id")}
        data["references"] = texts_of(row, task.references_field, place)
        prompts.append(Prompt(id=str(row.get("id", f"{split}-{number}")), text=text, data=data))
    return prompts
