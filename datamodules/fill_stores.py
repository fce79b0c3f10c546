"""Filling of the stores that a run reads: rollouts of its prompts, and the base's hidden states on them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from rich.progress import track

from datamodules.held_out import HeldOut
from datamodules.state_choice import StateChoice
from dinado.bases.causal import BaseLM
from dinado.control.controlled_lm import ControlledLM
from dinado.oracles import Oracle
from dinado.ranks import rank_and_size
from dinado.rollouts.collect import Progress, collect, progress_bar
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.served_texts import ServedTexts
from dinado.rollouts.state_store import StateStore, record_states

log = logging.getLogger(__name__)


class StoreFiller:
    """A sampler of missing rollouts and recorder of missing states; each process fills its share of the blocks.

    Args:
        base: the model to sample from and to record states of.
        oracle: scores the texts.
        states: chooses the states to keep.
        progress: whether to show progress bars.
        served: the server that stores with an engine are sampled from.
    """

    def __init__(
        self,
        base: BaseLM,
        oracle: Oracle,
        states: StateChoice,
        *,
        progress: bool,
        served: ServedTexts | None = None,
    ) -> None:
        self._base = base
        self._oracle = oracle
        self._states = states
        self._progress = progress
        self._served = served

    def fill_all(self, stores: Sequence[RolloutStore]) -> float:
        """Sample the missing rollouts of all stores; return the rollouts per second of all processes together.

        Hidden states that training will read are recorded while sampling.
        """
        started = time.monotonic()
        done = sum(map(self._fill_shown, stores))
        return done / (time.monotonic() - started)

    def fill_held_out(self, held_out: HeldOut) -> None:
        """Sample the missing held-out rollouts, stage after stage."""
        while (store := held_out.missing()) is not None:
            self._fill_shown(store)

    def _fill_shown(self, store: RolloutStore) -> int:
        """Sample the missing rollouts of a store with a progress bar; return their number."""
        title = f"{store.spec.split} rollouts" if store.spec.places is None else "on to the first accepted rollout"
        shown = self._progress and rank_and_size()[0] == 0 and not store.is_complete()
        with progress_bar(title) if shown else nullcontext(None) as update:
            missing = store.spec.num_rollouts(store.missing_blocks())
            self.fill(store, on_progress=update)
        return missing

    def fill(
        self,
        store: RolloutStore,
        *,
        controlled: ControlledLM | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Sample the missing rollouts of a store, and wait for the other processes.

        Args:
            controlled: the model to sample from in place of the base.
        """
        rank, world_size = rank_and_size()
        collect(
            self._base,
            self._oracle,
            store,
            rank=rank,
            world_size=world_size,
            on_progress=on_progress,
            states=self._on_the_way(store) if controlled is None else None,
            controlled=controlled,
            served=self._served,
        )
        store.wait()

    def fill_states(self, store: RolloutStore) -> None:
        """Record the states that a complete store still lacks, such as those of texts sampled by an earlier run."""
        rank, world_size = rank_and_size()
        base, states = self._base, self._states.of(store)
        if states is None or not (missing := states.missing_blocks()):
            return
        if rank == 0:
            size = states.num_bytes(base) / 1e6
            log.info("recording the base's hidden states, once: %.0f MB in %s", size, states.folder)
        shown = self._progress and rank == 0 and store.round == 0
        mine = [block for block in missing if block % world_size == rank]
        with base.adapters(on=False), base.in_step():
            for block in track(mine, "hidden states", transient=True, disable=not shown):
                record_states(base, states, block)
        states.wait()

    def _on_the_way(self, store: RolloutStore) -> StateStore | None:
        """Return the state store to fill while sampling, or None; held-out rollouts are read too seldom for one."""
        if store.spec.split != "train" or store.spec.engine is not None or store.is_complete():
            return None
        states = self._states.while_sampling(store)
        if states is not None and rank_and_size()[0] == 0:
            size = states.most_bytes(self._base) / 1e6
            log.info("keeping the base's hidden states on the way: %.0f MB at most, in %s", size, states.folder)
        return states
