"""Make sure that what a run reads exists: the rollouts of its prompts, the base's states along them."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

from rich.progress import track

from datamodules.states import state_store
from datamodules.stores import stores_of_run, train_store, uses_rollouts, val_store
from datamodules.tasks import Task
from dinado.models.base_lm import BaseLM
from dinado.rollouts.collect import collect, progress_bar
from dinado.rollouts.states import record_states

if TYPE_CHECKING:
    from experiments.config import Config

log = logging.getLogger(__name__)


def prepare_rollouts(config: Config, base: BaseLM, task: Task, *, train: bool = True) -> float:
    """Sample what is missing, this process its share of the blocks; returns rollouts a second, 0 if nothing was.

    Blocks are shared out by the launcher's RANK and WORLD_SIZE, so every process of a job helps.

    Args:
        train: whether the rollouts that are trained on are needed, or the held-out ones alone.
    """
    rank, world_size = _place()
    done, seconds = 0, 0.0
    for store in stores_of_run(config, base, task) if train else [val_store(config, base, task)]:
        shown = config.trainer.progress and rank == 0 and not store.is_complete()
        with progress_bar(f"{store.spec.split} rollouts") if shown else nullcontext(None) as update:
            progress = collect(base, task.oracle, store, rank=rank, world_size=world_size, on_progress=update)
        store.wait()
        done, seconds = done + progress.done, seconds + progress.seconds
    return done / seconds if seconds else 0.0


def prepare_states(config: Config, base: BaseLM, task: Task) -> None:
    """Record the base's hidden states along the training rollouts, where training is to read them from disk."""
    rank, world_size = _place()
    states = state_store(config, base, train_store(config, base, task)) if uses_rollouts(config) else None
    if states is None or not (missing := states.missing_blocks()):
        return
    if rank == 0:
        log.info("recording the base's hidden states, once: %.0f MB in %s", states.num_bytes(base) / 1e6, states.folder)
    shown = config.trainer.progress and rank == 0
    mine = [block for block in missing if block % world_size == rank]
    for block in track(mine, "hidden states", transient=True, disable=not shown):
        record_states(base, states, block)
    states.wait()


def _place() -> tuple[int, int]:
    """Rank and number of processes, as the launcher says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
