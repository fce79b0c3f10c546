"""Prompts from the user's own file, one JSON object per line.

Fields: the prompt (``task.prompt_field``), a text or a conversation; optionally ``id``, references
(``task.references_field``), and a completion (``task.completion_field``) with its label (``task.label_field``), a
rollout of an unknown proposal. Every other field is kept in ``Prompt.data``, where the oracle finds it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from datamodules.tasks.conversations import MESSAGES, completion_of, request_of
from datamodules.tasks.json_rows import Row, read_rows, texts_of
from datamodules.tasks.task import TaskSource
from dinado.errors import DataError
from dinado.prompt import Prompt
from workbench.settings.data_settings import DataConfig
from workbench.settings.tasks import TaskConfig

REJECTED = "rejected"


def source(task: TaskConfig, data: DataConfig) -> TaskSource:
    """Return the prompts of ``task.path``; ``task.val_path``, or else the end of ``task.path``, is held out."""
    held_out = data.val_prompts
    if task.path is None:
        raise DataError("task jsonl needs a file of prompts; set task.path")
    prompts, completed = _prompts(Path(task.path), task, "train")
    made = TaskSource(prompts, [], oracle=None, identity=identity, completed=completed)
    if task.val_path is not None:
        return dataclasses.replace(made, val=_prompts(Path(task.val_path), task, "val")[0])
    if not 0 < held_out <= len(prompts) / 2:
        raise DataError(
            f"{task.path} has {len(prompts)} prompts, of which data.val_prompts={held_out} cannot be held out; "
            "take between 1 and half of them, or set task.val_path to a file of held-out prompts"
        )
    return dataclasses.replace(made, train=prompts[:-held_out], val=prompts[-held_out:])


def identity(prompt: Prompt) -> str:
    """Return the text of the conversation, normalised in case and spacing."""
    return " ".join(prompt.transcript.casefold().split())


def _prompts(path: Path, task: TaskConfig, split: str) -> tuple[list[Prompt], str]:
    """Return the prompts of a file, and the place of its first completion ("" if there is none).

    Completions of one prompt are collected under it, those labelled true as references.
    """
    prompts: list[Prompt] = []
    data_of: dict[str, dict[str, Any]] = {}
    completed = ""
    for number, (place, row) in enumerate(read_rows(path)):
        request = request_of(row, task.prompt_field, place, "task.prompt_field")
        completion, accepted = _completion(row, request.answer, task, place)
        data = _data(row, task, completion is not None, place)
        id_ = str(row.get("id", f"{split}-{number}"))
        if completion is None:
            prompts.append(Prompt(id_, request.text, data, request.turns))
            continue
        completed = completed or place
        key = json.dumps([row.get("id"), request.text, request.turns, data], sort_keys=True)
        if key not in data_of:
            data_of[key] = data
            prompts.append(Prompt(id_, request.text, data, request.turns))
        data_of[key].setdefault("references" if accepted else REJECTED, []).append(completion)
    return prompts, completed


def _completion(row: Row, answer: str | None, task: TaskConfig, place: str) -> tuple[str | None, bool]:
    """Return the completion of a row, or None, and whether it is a good one."""
    field = task.completion_field
    if field is None:
        return None, False
    if row.get(field) is not None:
        if answer is not None:
            raise DataError(f"{place}: the conversation ends with an answer, and field {field!r} is another one")
        answer = completion_of(row, field, place)
    if answer is None or task.label_field not in row:
        return answer, True
    label = row[task.label_field]
    if label not in (True, False):  # 1 and 0 are equal to these
        raise DataError(f"{place}: field {task.label_field!r} (task.label_field) must be true or false")
    if REJECTED in row and not label:
        raise DataError(f"{place}: field {REJECTED!r} is where completions labelled false are kept; rename it")
    return answer, bool(label)


def _data(row: Row, task: TaskConfig, completed: bool, place: str) -> dict[str, Any]:
    """Return the fields that the oracle finds in ``Prompt.data``."""
    read = {task.prompt_field if task.prompt_field in row else MESSAGES, task.references_field, "id"}
    if completed:
        read |= {str(task.completion_field), task.label_field}
    data = {key: value for key, value in row.items() if key not in read}
    if "references" in data:
        raise DataError(
            f"{place}: field 'references' is where the oracle finds task.references_field={task.references_field}; "
            "rename it in the file"
        )
    return data | {"references": list(texts_of(row, task.references_field, place))}
