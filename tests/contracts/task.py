"""The contract of a task."""

from __future__ import annotations

import pickle
from pathlib import Path

from contracts.oracle import TEXTS
from datamodules.tasks.build_task import build_task
from datamodules.tasks.task import Task, TaskSource
from dinado.imports import imported
from workbench.settings.config import Config
from workbench.settings.derived import task_of

TaskCase = Config
"""A configuration that names the task and holds what it needs."""


def source_of(config: TaskCase) -> TaskSource:
    """Return what the task's own file makes of the settings."""
    source: TaskSource = imported(task_of(config).module)(config.task, config.data)
    return source


def built(config: TaskCase) -> Task:
    """Return the task, checked and cut; a task without an oracle of its own is judged by length."""
    if source_of(config).oracle is None:
        config.oracle.name, config.oracle.max_words = "length", 5
    return build_task(config)


def prompts_are_unique(config: TaskCase) -> None:
    """Check that both sides have prompts, an id belongs to one prompt, and nothing is asked on both sides."""
    source = source_of(config)
    assert source.train and source.val
    if task_of(config).exact:
        assert source.identity is None and len(source.train) == len(source.val) == 1
        return
    ids = [prompt.id for prompt in (*source.train, *source.val)]
    assert len(ids) == len(set(ids)) and all(isinstance(name, str) for name in ids)
    assert source.identity is not None, "only a task of one prompt may have none"
    sides = [{source.identity(prompt) for prompt in side} for side in (source.train, source.val)]
    assert not sides[0] & sides[1]


def is_the_same_every_time(config: TaskCase) -> None:
    """Check that prompts, their order and the oracle do not depend on anything but the settings."""
    first, second = built(config), built(config)
    assert first.train_prompts == second.train_prompts and first.val_prompts == second.val_prompts
    assert first.oracle.fingerprint == second.oracle.fingerprint


def its_oracle_judges_its_prompts(config: TaskCase) -> None:
    """Check that the oracle finds in each prompt what it needs, and survives pickling with the prompts."""
    task = built(config)
    texts = ["1", "2 1"] if task_of(config).exact else list(TEXTS)
    for prompt in (*task.train_prompts[:20], *task.val_prompts[:20]):
        again, oracle = pickle.loads(pickle.dumps((prompt, task.oracle)))
        for judge, other in ((task.oracle, oracle), (task.oracle.checked_progress, oracle.checked_progress)):
            scores = judge([prompt] * len(texts), texts)
            assert scores.tolist() == other([again] * len(texts), texts).tolist()


def sample_data(folder: Path) -> dict[str, str]:
    """Write small files for the tasks that read some; return what ``task.path`` is for each, by the task's name."""
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "Say {i}."}}\n' for i in range(9)))
    for split, first in (("train", "dog"), ("dev", "cat")):
        row = f'{{"id": "{split}", "concepts": ["{first}", "run", "tree"], "references": ["A {first} runs."]}}\n'
        (folder / f"{split}.jsonl").write_text(row)
    return {"jsonl": str(folder / "prompts.jsonl"), "commongen": str(folder)}


CHECKS = (prompts_are_unique, is_the_same_every_time, its_oracle_judges_its_prompts)
