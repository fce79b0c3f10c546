"""Whether a run reads the frozen base's states from disk, and which."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from datamodules.rows import Rows, RowStates
from datamodules.stores import uses_rollouts
from dinado.errors import ConfigError
from dinado.models.base_lm import BaseLM
from dinado.rollouts.states import StateStore
from dinado.rollouts.store import RolloutStore
from dinado.rollouts.table import Rollouts
from experiments.derived import depths_read

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
    states = _possible(config, base, store)
    if states is None:
        return None
    automatic = config.data.states == "auto"
    if automatic:
        rollouts = store.read()
        if not _pays(config, base, len(rollouts), float(rollouts.length_N.mean())):
            return None
    gigabytes = states.num_bytes(base) / 1e9
    if gigabytes <= config.data.states_limit_gb:
        return states
    excess = f"hidden states of {gigabytes:.1f} GB are over data.states_limit_gb={config.data.states_limit_gb:g}"
    if automatic:
        log.info("%s; the base runs at every step instead", excess)
        return None
    raise ConfigError(f"data.states={config.data.states}: {excess}; raise it, or set data.states=off")


def states_while_sampling(config: Config, base: BaseLM, store: RolloutStore) -> StateStore | None:
    """Where to keep states while the texts are still being sampled.

    None unless it is certain, whatever the texts, that :func:`state_store` will want them.
    """
    states = _possible(config, base, store)
    if states is None or states.most_bytes(base) > 1e9 * config.data.states_limit_gb:
        return None
    spec = store.spec
    certain = config.data.states != "auto" or _pays(config, base, spec.num_rollouts(), spec.max_new_tokens)
    return states if certain else None


def _possible(config: Config, base: BaseLM, store: RolloutStore) -> StateStore | None:
    """Where they would be kept, if this run reads any and does not refuse them."""
    depths, kept = depths_read(config), config.data.states
    if not depths or kept == "off" or not uses_rollouts(config):
        return None
    if kept == "auto" and config.rollouts.rounds > 1:
        return None  # rollouts of later rounds are visited less often
    layers = sorted({base.layer(depth) for depth in depths})
    return StateStore(store, layers, base.hidden_size, "float32" if kept == "auto" else kept)


def _pays(config: Config, base: BaseLM, num_rollouts: int, mean_length: float) -> bool:
    """Whether recording is less work than running the base at every step."""
    if sum(p.numel() for p in base.model.parameters()) < WORTH_PARAMETERS:
        return False
    optim = config.optim
    in_a_step = optim.batch_size if optim.batch_tokens is None else optim.batch_tokens / mean_length
    return (optim.steps + optim.norm_steps) * in_a_step >= WORTH_READS * num_rollouts


def with_states(rows: Rows, rollouts: Rollouts, kept: Sequence[StateStore]) -> Rows:
    """The rows of one or several stores with their states to read.

    Args:
        kept: the states of each store, in the order of the rows; none to leave the rows as they are.

    Raises:
        StoreError: some are missing.
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
