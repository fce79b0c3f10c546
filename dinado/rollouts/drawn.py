"""Rollouts of several rounds with different sources, read as one set.

Axes: N rows, J sources, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dinado.errors import StoreError
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.rollout_table import Rollouts


class Drawn(NamedTuple):
    """Rollouts, with their log-probabilities under every source that any of them was drawn from.

    Attributes:
        log_s_NJ: log-probability of each whole response, float64; -inf where a source cannot draw it.
        source_N: index of the source that each rollout was drawn from.
        count_PJ: number of rollouts of each prompt from each source, dropped truncated rollouts included.
        truncated: whether every source excludes some of the base's possible responses.
    """

    rollouts: Rollouts
    log_s_NJ: np.ndarray
    source_N: np.ndarray
    count_PJ: np.ndarray
    truncated: bool = False


def sources_of(stores: Sequence[RolloutStore]) -> list[str]:
    """Return the distinct sources of some stores, in order."""
    return list(dict.fromkeys(store.source for store in stores))


def missing_densities(stores: Sequence[RolloutStore]) -> list[tuple[RolloutStore, str]]:
    """List stores and sources whose densities are missing (those of a store's own source and the base never are)."""
    return [
        (store, source)
        for source in sources_of(stores)
        for store in stores
        if not (store.source == source or _is_base(source, stores))
        and not all(store.has_density(source, block) for block in range(store.spec.num_blocks))
    ]


def read_rounds(stores: Sequence[RolloutStore]) -> Drawn:
    """Return all rows of complete stores, in order, with their densities under each other's sources.

    Raises:
        StoreError: blocks or densities are missing or damaged.
    """
    for store, _ in missing_densities(stores):
        raise StoreError(f"{store.texts_folder} lacks densities; start the run again to add them")
    first, sources = stores[0], sources_of(stores)
    tables = [store.table() for store in stores]
    everything = Rollouts(pa.concat_tables(tables), first.spec.prompts)
    rollouts = Rollouts(pa.concat_tables(tables), first.spec.prompts, keep_truncated=first.truncated != "drop")
    own_N = np.repeat([sources.index(store.source) for store in stores], [len(table) for table in tables])
    log_s_NJ = np.empty((len(everything), len(sources)))
    for j, source in enumerate(sources):
        if _is_base(source, stores):
            log_s_NJ[:, j] = everything.log_p_N
        elif len(sources) > 1:
            # A store's own densities are stored with its texts and filled in below.
            log_s_NJ[own_N != j, j] = np.concatenate(
                [store.density(source) for store in stores if store.source != source]
            )
        log_s_NJ[own_N == j, j] = everything.log_s_N[own_N == j]
    truncated = all(store.spec.proposal.truncates for store in stores)
    count_PJ = np.zeros((len(first.spec.prompts), len(sources)), dtype=np.int64)
    np.add.at(count_PJ, (everything.prompt_index_N, own_N), 1)
    return Drawn(rollouts, log_s_NJ[rollouts.stored_N], own_N[rollouts.stored_N], count_PJ, truncated)


def _is_base(source: str, stores: Sequence[RolloutStore]) -> bool:
    spec = next(store.spec for store in stores if store.source == source)
    return spec.model is None and spec.proposal.is_base
