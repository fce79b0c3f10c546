"""What a task is, and what each task's own file hands to :func:`datamodules.tasks.build_task.build_task`."""

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
        val_prompts: held-out prompts; no request occurs on both sides (exact worlds have a single prompt, on both).
        oracle: C(c, y) in [0, 1].
        has_references: every prompt has at least one reference text.
    """

    name: str
    train_prompts: list[Prompt]
    val_prompts: list[Prompt]
    oracle: Oracle
    has_references: bool


@dataclass(frozen=True)
class TaskSource:
    """Everything a task offers, in its own order, before it is checked, shuffled and cut to size.

    Attributes:
        train: prompts for training.
        val: held-out prompts.
        oracle: the oracle that comes with the task; None when the user has to name one.
        identity: two prompts with equal identity ask the same thing, and may not be on both sides; None for a task
            that has one prompt only.
    """

    train: list[Prompt]
    val: list[Prompt]
    oracle: Oracle | None
    identity: Callable[[Prompt], Hashable] | None
