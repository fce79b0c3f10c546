"""Construction of a :class:`Task`: load prompts, check them, keep held-out ones apart, shuffle and cut."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable

import torch

from datamodules.tasks.configured_oracle import configured_oracle
from datamodules.tasks.task import Task, TaskSource
from dinado.errors import DataError
from dinado.imports import imported
from dinado.oracles.lexical import concepts_of
from dinado.prompt import Prompt
from dinado.seeding import generator
from workbench.settings.config import Config
from workbench.settings.data_settings import DataConfig
from workbench.settings.derived import row_source, task_of
from workbench.settings.tasks import TaskConfig

log = logging.getLogger(__name__)


def build_task(config: Config) -> Task:
    """Build the task that ``config.task`` describes, with ``config.oracle`` and cut to ``config.data``.

    The shuffle has its own seed and does not depend on the training seed, so that runs with several seeds see the
    same prompts, and the prompts of a smaller cut are a prefix of those of a larger one. Training prompts that ask the
    same as a held-out prompt are dropped, whatever the cut.

    Raises:
        DataError: the data are missing, empty or malformed, or prompt ids are not unique.
        OracleError: there is no oracle, or it cannot be built.
    """
    name = config.task.name
    make: Callable[[TaskConfig, DataConfig], TaskSource] = imported(task_of(config).module)
    source = make(config.task, config.data)
    if source.completed and row_source(config) != "references":
        raise DataError(
            f"{source.completed} has a completion, a rollout of unknown density that method={config.method} cannot "
            "weigh; train on completions with method=sft sft_data=references, or take the prompts alone with "
            "task.completion_field=null"
        )
    train = _held_apart(source) if source.identity else source.train
    # An exact world has one prompt, in both splits; in every other task an id belongs to one prompt.
    _check_ids(name, train + source.val if source.identity else train)
    train = _cut(train, config.data.train_prompts, name, "train")
    val = _cut(source.val, config.data.val_prompts, name, "val")
    has_references = all(prompt.references for prompt in train + val)
    oracle = configured_oracle(config.oracle, source.oracle)
    if config.oracle.name == "lexical" and not config.oracle.words:
        train, val = _with_lists(train), _with_lists(val)
    oracle.check_prompts(train + val)
    _ = oracle.fingerprint  # taken before the first use; refuses an oracle without a stable identity before any work
    return Task(name, train, val, oracle, has_references)


def _with_lists(prompts: list[Prompt]) -> list[Prompt]:
    """Return the prompts with ``concepts`` as lists: one word stands for a list of it."""
    return [dataclasses.replace(prompt, data={**prompt.data, "concepts": concepts_of(prompt)}) for prompt in prompts]


def _held_apart(source: TaskSource) -> list[Prompt]:
    """Return the training prompts that do not ask the same as a held-out prompt."""
    assert source.identity is not None
    held_out = {source.identity(prompt) for prompt in source.val}
    kept = [prompt for prompt in source.train if source.identity(prompt) not in held_out]
    if len(kept) < len(source.train):
        log.warning("left out %d training prompts that are also held out", len(source.train) - len(kept))
    return kept


def _check_ids(name: str, prompts: list[Prompt]) -> None:
    repeated = [id_ for id_, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if repeated:
        raise DataError(
            f"task {name}: prompt id {repeated[0]!r} is used more than once ({len(repeated)} such ids); "
            "make ids unique over training and held-out prompts"
        )


def _cut(prompts: list[Prompt], count: int, name: str, split: str) -> list[Prompt]:
    """Return ``count`` prompts in shuffled order, or all when ``count`` is 0 or exceeds their number."""
    if not prompts:
        raise DataError(f"task {name}: no {split} prompts are left; check task.path and the filters under task")
    order = torch.randperm(len(prompts), generator=generator("prompt order", name, split)).tolist()
    return [prompts[i] for i in order[: count or None]]
