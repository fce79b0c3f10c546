"""The choice of the frozen base's hidden states that a run reads from disk."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from datamodules.training_rows import Rows, RowStates
from dinado.bases.causal import BaseLM
from dinado.errors import ConfigError
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.rollout_table import Rollouts
from dinado.rollouts.state_store import StateStore
from workbench.settings.config import Config
from workbench.settings.derived import depths_read, uses_rollouts

log = logging.getLogger(__name__)

WORTH_PARAMETERS = 1_000_000
"""Parameters of the smallest base whose states are kept; running a smaller one is as fast as reading its states."""
WORTH_READS = 2
"""Number of visits of every rollout from which the pass that records its states pays off."""


class StateChoice:
    """The decision, for each store, whether its states are kept on disk.

    Args:
        config: which states of the frozen base training reads, and how often.
        base: the model whose states they are.
    """

    def __init__(self, config: Config, base: BaseLM) -> None:
        self._base = base
        self._data = config.data
        self._optim = config.optim
        self._rounds = config.rollouts.rounds
        self._depths = depths_read(config) if uses_rollouts(config) else ()

    def of(self, store: RolloutStore) -> StateStore | None:
        """Return the state store of a complete store; None where the base runs at every step or not at all.

        Raises:
            ConfigError: the settings request states that exceed the size limit.
        """
        states, data = self._possible(store), self._data
        if states is None:
            return None
        automatic = data.states == "auto"
        if automatic:
            rollouts = store.read()
            if not self._pays(len(rollouts), float(rollouts.length_N.mean())):
                return None
        gigabytes = states.num_bytes(self._base) / 1e9
        if gigabytes <= data.states_limit_gb:
            return states
        excess = f"hidden states of {gigabytes:.1f} GB are over data.states_limit_gb={data.states_limit_gb:g}"
        if automatic:
            log.info("%s; the base runs at every step instead", excess)
            return None
        raise ConfigError(f"data.states={data.states}: {excess}; raise it, or set data.states=off")

    def while_sampling(self, store: RolloutStore) -> StateStore | None:
        """Return the state store to fill while the texts are still being sampled.

        None unless it is certain, whatever the texts, that :meth:`of` will return it.
        """
        states = self._possible(store)
        if states is None or states.most_bytes(self._base) > 1e9 * self._data.states_limit_gb:
            return None
        spec = store.spec
        certain = self._data.states != "auto" or self._pays(spec.num_rollouts(), spec.max_new_tokens)
        return states if certain else None

    def _possible(self, store: RolloutStore) -> StateStore | None:
        """Return the state store, if this run reads states and the settings allow keeping them."""
        kept = self._data.states
        if not self._depths or kept == "off":
            return None
        if kept == "auto" and self._rounds > 1:
            return None  # Rollouts of later rounds are visited less often.
        layers = sorted({self._base.layer(depth) for depth in self._depths})
        return StateStore(store, layers, self._base.state_width, "float32" if kept == "auto" else kept)

    def _pays(self, num_rollouts: int, mean_length: float) -> bool:
        """Tell whether recording is less work than running the base at every step."""
        if sum(p.numel() for p in self._base.model.parameters()) < WORTH_PARAMETERS:
            return False
        optim = self._optim
        in_a_step = optim.batch_size if optim.batch_tokens is None else optim.batch_tokens / mean_length
        return (optim.steps + optim.norm_steps) * in_a_step >= WORTH_READS * num_rollouts


def with_states(rows: Rows, rollouts: Rollouts, kept: Sequence[StateStore]) -> Rows:
    """Add the states of one or several stores to their rows.

    Args:
        kept: the states of each store, in the order of the rows; an empty list leaves the rows unchanged.

    Raises:
        StoreError: some states are missing.
    """
    if not kept:
        return rows
    tables = [states.read() for states in kept]
    ends = np.cumsum([len(table) for table in tables])

    def response(row: int) -> Tensor:
        stored = int(rollouts.stored_N[row])
        place = int(np.searchsorted(ends, stored, side="right"))
        return tables[place].response(stored - int(ends[place] - len(tables[place])))

    return dataclasses.replace(rows, states=RowStates(tables[0].depths, tables[0].prompt, response))
