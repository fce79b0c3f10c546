"""What Lightning iterates over: the micro-batches of one process, and its held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from dinado.batch import RolloutBatch


class TrainSource(Protocol):
    """Where training batches come from."""

    steps_done: int

    @property
    def num_steps(self) -> int:
        """Optimiser steps in all."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of this process in an optimiser step."""

    def batches(self, start: int, stop: int, parts: int = 1) -> Iterator[RolloutBatch]:
        """Yield the micro-batches of some optimiser steps."""


class HeldOutSource(Protocol):
    """Where held-out batches come from."""

    def val_batch(self, row_B: np.ndarray | None) -> RolloutBatch:
        """Return some held-out rows as tensors, or a filler."""


class TrainLoader:
    """The micro-batches of one process, from the optimiser step that training has reached to the last one.

    Its length counts them all, also those before the start: Lightning counts on from where a checkpoint was.
    """

    def __init__(self, data: TrainSource) -> None:
        self._data = data

    def __len__(self) -> int:
        return self._data.num_steps * self._data.accumulation

    def __iter__(self) -> Iterator[RolloutBatch]:
        parts = self._data.accumulation
        for step in range(self._data.steps_done, self._data.num_steps):
            for index, batch in enumerate(self._data.batches(step, step + 1, parts)):
                # Counted when the last one leaves: a checkpoint is taken before the next one is asked for.
                if index + 1 == parts:
                    self._data.steps_done = step + 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is in the data module's state, but Lightning warns about loaders without one."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the data module restores the position."""


class HeldOutLoader:
    """Every held-out rollout once over all processes, whole prompts together; as many batches on each process.

    ``weight_total`` is the sum of the batch's own weights, and 0 on a filler.
    """

    def __init__(self, data: HeldOutSource, batches: list[np.ndarray | None]) -> None:
        self._data = data
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[RolloutBatch]:
        return map(self._data.val_batch, self._batches)
