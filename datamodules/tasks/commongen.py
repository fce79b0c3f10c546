"""CommonGen: a sentence that uses all of a few given words (Lin et al. 2020, "CommonGen", Findings of EMNLP).

The data are read from ``train.jsonl`` and ``dev.jsonl`` (fields ``id``, ``concepts``, ``references``) in ``task.path``
or in ``<data.root>/commongen``. If ``task.path`` is not a folder but has the form of a hub name such as
``allenai/common_gen``, they come from the Hugging Face hub. The tests replace the download, so the hub's copy may have
changed since this was written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datamodules.tasks.json_rows import read_rows, texts_of
from datamodules.tasks.task import TaskSource
from dinado.errors import DataError
from dinado.oracles import LexicalOracle
from dinado.prompt import Prompt
from workbench.settings.data_settings import DataConfig
from workbench.settings.tasks import TaskConfig

ROOT_VARIABLE = "DINADO_DATA"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
Rows = Iterable[tuple[str, dict[str, Any]]]


def source(task: TaskConfig, data: DataConfig) -> TaskSource:
    """Return a prompt for every concept set, dev sets held out; the oracle needs every concept, in any inflection."""
    if "{words}" not in task.template:
        raise DataError("task.template has no {words}; put it where the concepts belong")
    if task.path and not Path(task.path).exists() and HUB_NAME.fullmatch(task.path):
        train, val = _hub_rows(task.path, "train"), _hub_rows(task.path, "validation")
    else:
        folder = Path(task.path) if task.path else _data_root(data.root) / "commongen"
        train, val = read_rows(folder / "train.jsonl"), read_rows(folder / "dev.jsonl")
    return TaskSource(_prompts(train, task), _prompts(val, task), oracle=LexicalOracle(), identity=identity)


def identity(prompt: Prompt) -> Hashable:
    """Return the concepts as a set: their order does not change the request."""
    return frozenset(prompt.data["concepts"])


def _data_root(root: str | None) -> Path:
    value = root or os.environ.get(ROOT_VARIABLE)
    if not value:
        raise DataError(
            f"task commongen needs its data; set data.root or {ROOT_VARIABLE} to the folder that holds "
            "commongen/train.jsonl, or task.path to a hub name such as allenai/common_gen"
        )
    if not Path(value).is_dir():
        raise DataError(f"data root {value} is not a folder; correct {'data.root' if root else ROOT_VARIABLE}")
    return Path(value)


def _prompts(rows: Rows, task: TaskConfig) -> list[Prompt]:
    prompts = []
    for place, row in rows:
        for field in ("id", "concepts", "references"):
            if field not in row:
                raise DataError(f"{place} has no field {field!r}; CommonGen rows have id, concepts and references")
        concepts = texts_of(row, "concepts", place)
        if not concepts or not all(concept.strip() for concept in concepts):
            raise DataError(f"{place}: concepts must be a list of words, none of them blank")
        if task.num_concepts and len(concepts) != task.num_concepts:
            continue
        data = {"concepts": concepts, "references": texts_of(row, "references", place)}
        text = task.template.replace("{words}", ", ".join(concepts))
        prompts.append(Prompt(id=str(row["id"]), text=text, data=data))
    return prompts


def _hub_rows(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a hub dataset, which has one sentence (``target``) per row, grouped by concept set."""
    import datasets

    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises a dozen unrelated types for "not found" and "offline"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"task.path={name} is neither a folder nor a hub dataset that loads: {reason}") from error
    missing = {"concept_set_idx", "concepts", "target"} - set(table.column_names)
    if missing:
        raise DataError(f"hub dataset {name} has no column {min(missing)!r}; task commongen needs allenai/common_gen")
    groups: dict[int, dict[str, Any]] = {}
    for row in table:
        index = row["concept_set_idx"]
        new = {"id": f"{split}-{index}", "concepts": row["concepts"], "references": []}
        groups.setdefault(index, new)["references"].append(row["target"])
    for row in groups.values():
        yield f"hub dataset {name} set {row['id']}", row
