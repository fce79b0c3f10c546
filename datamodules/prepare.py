"""Make sure that everything a run reads exists: the rollouts of its prompts."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

from datamodules.stores import stores_of_run
from datamodules.tasks import Task
from dinado.models.base_lm import BaseLM
from dinado.rollouts.collect import collect, progress_bar

if TYPE_CHECKING:
    from experiments.config import Config


def prepare_rollouts(config: Config, base: BaseLM, task: Task) -> float:
    """Sample what is missing, this process its share of the blocks; returns rollouts a second, 0 if nothing was.

    Blocks are shared out by the launcher's RANK and WORLD_SIZE, so every process of a job helps.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    done, seconds = 0, 0.0
    for store in stores_of_run(config, base, task):
        shown = config.trainer.progress and rank == 0 and not store.is_complete()
        with progress_bar(f"{store.spec.split} rollouts") if shown else nullcontext(None) as update:
            progress = collect(base, task.oracle, store, rank=rank, world_size=world_size, on_progress=update)
        store.wait()
        done, seconds = done + progress.done, seconds + progress.seconds
    return done / seconds if seconds else 0.0
