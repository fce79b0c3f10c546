"""The loaders that Lightning iterates over: the micro-batches of one process, and its held-out batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from dinado.batch import RolloutBatch


class TrainSource(Protocol):
    """A source of training batches."""

    steps_done: int

    @property
    def num_steps(self) -> int:
        """Total number of optimiser steps."""

    @property
    def accumulation(self) -> int:
        """Number of micro-batches of this process in an optimiser step."""

    def batches(self, start: int, stop: int, parts: int = 1) -> Iterator[RolloutBatch]:
        """Yield the micro-batches of the optimiser steps from ``start`` to before ``stop``, ``parts`` in each."""


class HeldOutSource(Protocol):
    """A source of held-out batches."""

    def val_batch(self, row_B: np.ndarray | None) -> RolloutBatch:
        """Collate held-out rows into a batch; None gives a filler."""


class TrainLoader:
    """The micro-batches of one process, from the current optimiser step of training to the last one.

    Its length also counts those before the current step: Lightning continues its count from the checkpoint.
    """

    def __init__(self, data: TrainSource) -> None:
        self._data = data

    def __len__(self) -> int:
        return self._data.num_steps * self._data.accumulation

    def __iter__(self) -> Iterator[RolloutBatch]:
        parts = self._data.accumulation
        for step in range(self._data.steps_done, self._data.num_steps):
            for index, batch in enumerate(self._data.batches(step, step + 1, parts)):
                # Counted before the last micro-batch is yielded: a checkpoint is saved before the next is requested.
                if index + 1 == parts:
                    self._data.steps_done = step + 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the data module saves the position, but Lightning warns about loaders without one."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state: the data module restores the position."""


class HeldOutLoader:
    """Every held-out rollout once over all processes; prompts stay whole, and processes have equally many batches.

    ``weight_total`` is the sum of the batch's own weights, and 0 on a filler.
    """

    def __init__(self, data: HeldOutSource, batches: list[np.ndarray | None]) -> None:
        self._data = data
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[RolloutBatch]:
        return map(self._data.val_batch, self._batches)
