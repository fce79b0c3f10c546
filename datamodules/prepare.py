"""Make sure that what a run reads exists: the rollouts of its prompts, the base's states along them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from rich.progress import track

from datamodules.states import state_store, states_while_sampling
from datamodules.stores import stores_of_run, train_store, uses_rollouts, val_store
from datamodules.tasks import Task
from dinado.models.base_lm import BaseLM
from dinado.models.scores import adapters
from dinado.rollouts.collect import Progress, collect, progress_bar
from dinado.rollouts.states import StateStore, record_states
from dinado.rollouts.store import RolloutStore
from experiments.place import place

if TYPE_CHECKING:
    from dinado.models.controlled_lm import ControlledLM
    from experiments.config import Config

log = logging.getLogger(__name__)


def prepare_rollouts(config: Config, base: BaseLM, task: Task, *, train: bool = True) -> float:
    """Sample what is missing, this process its share of the blocks; returns rollouts a second of all processes.

    Hidden states that training will read are kept on the way. Blocks are shared out, so every process of a job helps.

    Args:
        train: whether the rollouts that are trained on are needed, or the held-out ones alone.
    """
    done, started = 0, time.monotonic()
    for store in stores_of_run(config, base, task) if train else [val_store(config, base, task)]:
        shown = config.trainer.progress and place()[0] == 0 and not store.is_complete()
        with progress_bar(f"{store.spec.split} rollouts") if shown else nullcontext(None) as update:
            done += store.spec.num_rollouts(store.missing_blocks())
            fill_store(config, base, task, store, on_progress=update)
    return done / (time.monotonic() - started)


def fill_store(
    config: Config,
    base: BaseLM,
    task: Task,
    store: RolloutStore,
    *,
    controlled: ControlledLM | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """Sample what a store lacks, this process its share, and wait for the others.

    Args:
        controlled: what is sampled in place of the base.
    """
    rank, world_size = place()
    states = _states_on_the_way(config, base, store) if controlled is None else None
    collect(
        base,
        task.oracle,
        store,
        rank=rank,
        world_size=world_size,
        on_progress=on_progress,
        states=states,
        controlled=controlled,
    )
    store.wait()


def prepare_states(config: Config, base: BaseLM, task: Task) -> None:
    """Record the hidden states that are still missing: of texts that were there, or too long for the limit at first."""
    if uses_rollouts(config):
        fill_states(config, base, train_store(config, base, task))


def fill_states(config: Config, base: BaseLM, store: RolloutStore) -> None:
    """Record what a complete store lacks of the states that training is to read from disk, this process its share."""
    rank, world_size = place()
    states = state_store(config, base, store)
    if states is None or not (missing := states.missing_blocks()):
        return
    if rank == 0:
        log.info("recording the base's hidden states, once: %.0f MB in %s", states.num_bytes(base) / 1e6, states.folder)
    shown = config.trainer.progress and rank == 0 and store.round == 0
    mine = [block for block in missing if block % world_size == rank]
    with adapters(base, on=False), base.in_step():
        for block in track(mine, "hidden states", transient=True, disable=not shown):
            record_states(base, states, block)
    states.wait()


def _states_on_the_way(config: Config, base: BaseLM, store: RolloutStore) -> StateStore | None:
    """Where to keep states while sampling; held-out rollouts are read too seldom for that."""
    if store.spec.split != "train" or store.is_complete():
        return None
    states = states_while_sampling(config, base, store)
    if states is not None and place()[0] == 0:
        size = states.most_bytes(base) / 1e6
        log.info("keeping the base's hidden states on the way: %.0f MB at most, in %s", size, states.folder)
    return states
