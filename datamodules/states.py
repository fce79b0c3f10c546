"""Whether a run reads the frozen base's states from disk, and which."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from datamodules.rows import Rows, RowStates
from datamodules.stores import uses_rollouts
from dinado.errors import ConfigError
from dinado.models.base_lm import BaseLM
from dinado.rollouts.states import StateStore
from dinado.rollouts.store import RolloutStore
from dinado.rollouts.table import Rollouts
from experiments.rules import depths_read

if TYPE_CHECKING:
    from experiments.config import Config

log = logging.getLogger(__name__)

WORTH_PARAMETERS = 1_000_000
"""A smaller base is run again as fast as its states are read."""
WORTH_READS = 2
"""How often every rollout has to be visited for the pass that records it to pay."""


def state_store(config: Config, base: BaseLM, store: RolloutStore) -> StateStore | None:
    """Where the states of a complete store are kept, None where the base runs at every step or not at all.

    Raises:
        ConfigError: they were asked for and do not fit.
    """
    depths, kept = depths_read(config), config.data.states
    if not depths or kept == "off" or not uses_rollouts(config):
        return None
    if kept == "auto" and not _pays(config, base, store):
        return None
    layers = sorted({base.layer(depth) for depth in depths})
    states = StateStore(store, layers, base.hidden_size, "float32" if kept == "auto" else kept)
    gigabytes = states.num_bytes(base) / 1e9
    if gigabytes <= config.data.states_limit_gb:
        return states
    excess = f"hidden states of {gigabytes:.1f} GB are over data.states_limit_gb={config.data.states_limit_gb:g}"
    if kept == "auto":
        log.info("%s; the base runs at every step instead", excess)
        return None
    raise ConfigError(f"data.states={kept}: {excess}; raise it, or set data.states=off")


def _pays(config: Config, base: BaseLM, store: RolloutStore) -> bool:
    """Whether recording is less work than running the base at every step."""
    if sum(p.numel() for p in base.model.parameters()) < WORTH_PARAMETERS:
        return False
    rollouts, optim = store.read(), config.optim
    in_a_step = optim.batch_size if optim.batch_tokens is None else optim.batch_tokens / rollouts.length_N.mean()
    return (optim.steps + optim.norm_steps) * in_a_step >= WORTH_READS * len(rollouts)


def with_states(rows: Rows, rollouts: Rollouts, states: StateStore | None) -> Rows:
    """The rows with their states to read.

    Raises:
        StoreError: some are missing.
    """
    if states is None:
        return rows
    table = states.read()
    found = RowStates(table.depths, table.prompt, lambda row: table.response(rollouts.stored(row)))
    return dataclasses.replace(rows, states=found)
