"""Rules about the task and its oracle."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workbench.settings import schema
from workbench.settings.derived import task_of
from workbench.settings.loaded import Loaded, said, typed
from workbench.settings.oracles import ORACLES, TASK


def horizon(loaded: Loaded) -> Iterator[str]:
    """Set the budget of an exact world: a response of `task.length` is complete, so it ends and is judged there."""
    if not task_of(loaded.config).exact:
        return
    for key, value in (("rollouts.max_new_tokens", loaded.config.task.length), ("rollouts.truncated", "score")):
        if typed(loaded, key) and schema.get(loaded.config, key) != value:
            yield f"{said(loaded, key)}: in an exact world it is always {value}; leave it out"
        schema.put(loaded.config, key, value)


def task(loaded: Loaded) -> Iterator[str]:
    """Check the requirements of the task."""
    task = loaded.config.task
    if task_of(loaded.config).exact:
        for key in ("required", "avoided", "ends_with"):
            value = getattr(task, key)
            tokens = value if isinstance(value, list) else [] if value is None else [value]
            if any(token >= task.vocab_size for token in tokens):
                yield f"{said(loaded, f'task.{key}')}: outside task.vocab_size={task.vocab_size}"
        if both := sorted(set(task.avoided) & {*task.required, task.ends_with}):
            yield f"{said(loaded, 'task.avoided')}: token {both[0]} is also required"
        if (needed := len({*task.required, task.ends_with} - {None})) > task.length:
            yield f"{said(loaded, 'task.length')}: too short for {needed} required tokens"
    elif task.name == "jsonl" and task.path is None:
        yield f"{said(loaded, 'task.name')}: needs task.path, a file of prompts"
    elif task.name == "commongen" and "{words}" not in task.template:
        yield f"{said(loaded, 'task.template')}: has no {{words}} to be replaced by the concepts"


def oracle(loaded: Loaded) -> Iterator[str]:
    """Check the requirements of the oracle."""
    oracle, task = loaded.config.oracle, loaded.config.task.name
    if task_of(loaded.config).exact and oracle.name != TASK:
        yield f"{said(loaded, 'oracle.name')}: task.name={task} is exact for its own oracle only; use oracle.name=task"
    if oracle.name == "user" and not re.fullmatch(r"[\w.]+:[\w.]+", oracle.function or ""):
        yield f"{said(loaded, 'oracle.function')}: oracle.name=user needs an importable module:callable"
    for key in ORACLES[oracle.name].needs:
        if getattr(oracle, key) is None:
            yield f"{said(loaded, 'oracle.name')}: needs oracle.{key}"
    if oracle.name == "regex":
        try:
            re.compile(oracle.pattern or "")
        except re.error as error:
            yield f"{said(loaded, 'oracle.pattern')}: not a regular expression: {error}"
    elif oracle.name == "length":
        if oracle.min_words == 0 and oracle.max_words is None:
            yield f"{said(loaded, 'oracle.name')}: needs oracle.min_words or oracle.max_words"
        if oracle.max_words is not None and oracle.max_words < oracle.min_words:
            yield f"{said(loaded, 'oracle.max_words')}: below oracle.min_words={oracle.min_words}"
