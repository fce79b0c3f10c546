"""A task, and the source of it that each task's module gives to :func:`datamodules.tasks.build_task.build_task`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from dinado.oracles import Oracle
from dinado.prompt import Prompt


@dataclass(frozen=True)
class Task:
    """Prompts and the oracle that judges responses to them.

    Attributes:
        name: the task's name in the config.
        train_prompts: prompts whose rollouts are trained on.
        val_prompts: held-out prompts; no request is in both splits (exact worlds have a single prompt, in both).
        oracle: C(c, y) in [0, 1].
        has_references: whether every prompt has at least one reference text.
    """

    name: str
    train_prompts: list[Prompt]
    val_prompts: list[Prompt]
    oracle: Oracle
    has_references: bool


@dataclass(frozen=True)
class TaskSource:
    """The prompts and the oracle of a task in their original order, before they are checked, shuffled and cut.

    Attributes:
        train: prompts for training.
        val: held-out prompts.
        oracle: the task's own oracle; None when the user has to configure one.
        identity: prompts with equal identity ask the same thing and may not be in both splits; None for a task with
            a single prompt.
        completed: place of the first completion that came with the training prompts; "" if there is none. Completions
            are rollouts of an unknown proposal, so only a method that trains on references can learn from them.
    """

    train: list[Prompt]
    val: list[Prompt]
    oracle: Oracle | None
    identity: Callable[[Prompt], Hashable] | None
    completed: str = ""
