"""Assignment of rows to optimiser steps, micro-batches and processes; steps do not depend on the number of processes.

Axes: N rows, G groups, B rows of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from datamodules.training_rows import Rows, rows_by_prompt
from dinado.errors import ConfigError
from dinado.seeding import generator
from workbench.settings.run_settings import OptimConfig


@dataclass(frozen=True)
class Budget:
    """The size of an optimiser step: ``amount`` rollouts, or as many rollouts as fit in ``amount`` response tokens."""

    amount: int
    by_tokens: bool = False

    def share(self, share: float) -> Budget:
        """Return a budget of this share, at least 1 and less than the whole."""
        return Budget(min(max(round(share * self.amount), 1), self.amount - 1), self.by_tokens)

    def rows(self, length_N: np.ndarray) -> float:
        """Return the mean number of rollouts in a step, for rollouts of these lengths in tokens."""
        return self.amount / float(length_N.mean()) if self.by_tokens else self.amount


class BatchPlan:
    """An endless sequence of optimiser steps over some rows, the same on any number of processes.

    An epoch contains every row once: the rows of each prompt are shuffled and cut into groups, and the groups are
    shuffled and concatenated. Steps are consecutive slices of the concatenated epochs, so a step may span two epochs.

    Args:
        rows: the rows that ``use_N`` indexes.
        use_N: indices of the rows to train on.
        budget: size of an optimiser step; at most that of an epoch.
        rows_per_prompt: largest number of rows in a group.
        seed, name: identify the random streams.
    """

    def __init__(
        self, rows: Rows, use_N: np.ndarray, budget: Budget, rows_per_prompt: int, seed: int, name: str = "batches"
    ) -> None:
        self._use_N = use_N
        self._name = name
        self._prompt_N = rows.prompt_index_N[use_N]
        self._length_N = rows.length_N[use_N]
        self._budget = budget
        self._starts = [0]
        self._rows_per_prompt = rows_per_prompt
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def step(self, index: int) -> np.ndarray:
        """Return the row indices of an optimiser step, groups kept together, short responses first."""
        stream = np.arange(*self._span(index))
        epochs, offsets = stream // len(self._use_N), stream % len(self._use_N)
        row_B = np.empty(len(stream), dtype=np.int64)
        group_B = np.empty((len(stream), 2), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order_N, group_N = self._epoch(int(epoch))
            row_B[here] = order_N[offsets[here]]
            group_B[here] = np.stack([epochs[here], group_N[offsets[here]]], 1)
        # Similar lengths share a micro-batch, which saves padding and changes no sum over the step.
        _, group_B = np.unique(group_B, axis=0, return_inverse=True)
        longest_G = np.zeros(group_B.max() + 1, dtype=np.int64)
        np.maximum.at(longest_G, group_B, self._length_N[row_B])
        return self._use_N[row_B[np.lexsort((group_B, longest_G[group_B]))]]

    def _span(self, index: int) -> tuple[int, int]:
        """Return the start (inclusive) and stop (exclusive) of a step in the concatenated epochs."""
        if not self._budget.by_tokens:
            return index * self._budget.amount, (index + 1) * self._budget.amount
        while len(self._starts) < index + 2:
            epoch, offset = divmod(self._starts[-1], len(self._use_N))
            # An epoch holds at least one budget, so the rest of this epoch and the next one hold a whole step.
            coming = np.concatenate([self._length_N[self._epoch(epoch + more)[0]] for more in (0, 1)])[offset:]
            fits = int(np.searchsorted(coming.cumsum(), self._budget.amount, side="right"))
            self._starts.append(self._starts[-1] + fits)
        return self._starts[index], self._starts[index + 1]

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions in ``use_N`` in the order of this epoch, and the group number of each."""
        stream = generator(self._seed, self._name, epoch)
        shuffled_N = torch.randperm(len(self._use_N), generator=stream).numpy()
        size = self._rows_per_prompt
        groups = [
            shuffled_N[rows_K[start : start + size]]
            for rows_K in rows_by_prompt(self._prompt_N[shuffled_N])
            for start in range(0, len(rows_K), size)
        ]
        groups = [groups[g] for g in torch.randperm(len(groups), generator=stream).tolist()]
        return np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(group) for group in groups])


class StratifiedPlan:
    """Optimiser steps with a fixed budget for each of several strata; every stratum has its own epochs.

    Args:
        rows: the rows that the strata index.
        strata_N: disjoint sets of row indices.
        budgets: the budget of each stratum in a step.
        rows_per_prompt, seed, name: see :class:`BatchPlan`.
    """

    def __init__(
        self,
        rows: Rows,
        strata_N: Sequence[np.ndarray],
        budgets: Sequence[Budget],
        rows_per_prompt: int,
        seed: int,
        name: str = "batches",
    ) -> None:
        self._length_N = rows.length_N
        self._plans = [
            BatchPlan(rows, use_N, budget, rows_per_prompt, seed, f"{name} of stratum {index}")
            for index, (use_N, budget) in enumerate(zip(strata_N, budgets, strict=True))
        ]

    def step(self, index: int) -> np.ndarray:
        """Return the row indices of an optimiser step, short responses first."""
        row_B = np.concatenate([plan.step(index) for plan in self._plans])
        return row_B[np.argsort(self._length_N[row_B], kind="stable")]


def stratum_weights(strata_N: Sequence[np.ndarray], counts: Sequence[float]) -> list[float]:
    """Compute the weight of a row of each stratum that keeps the expected loss of a step: (N_s / N) / (n_s / B)."""
    num_rows, num_drawn = sum(map(len, strata_N)), sum(counts)
    return [(len(rows) / num_rows) / (count / num_drawn) for rows, count in zip(strata_N, counts, strict=True)]


def micro_batches(optim: OptimConfig, world_size: int) -> int:
    """Return the number of micro-batches of one process in an optimiser step.

    Raises:
        ConfigError: the rollouts of a step cannot be divided evenly.
    """
    if optim.batch_tokens is None:
        return accumulation(optim.batch_size, optim.micro_batch, world_size)
    return 1 if optim.micro_tokens is None else -(-optim.batch_tokens // (world_size * optim.micro_tokens))


def accumulation(batch_size: int, micro_batch: int | None, world_size: int) -> int:
    """Return the number of micro-batches of one process in a step with a fixed number of rollouts.

    Args:
        micro_batch: rows in a micro-batch; None puts the whole share of a process into one.

    Raises:
        ConfigError: the step cannot be divided evenly.
    """
    if batch_size % world_size:
        raise ConfigError(f"optim.batch_size={batch_size} is not a multiple of the {world_size} processes; change it")
    share = batch_size // world_size
    if micro_batch is None:
        return 1
    if share % micro_batch:
        raise ConfigError(
            f"optim.micro_batch={micro_batch} does not divide the {share} rollouts a process gets of "
            f"optim.batch_size={batch_size}; choose a divisor"
        )
    return share // micro_batch


def split_step(
    row_B: np.ndarray, rank: int, world_size: int, micro_batches: int, length_B: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return the micro-batches of one process; similar lengths go to different processes, so that none waits long.

    Args:
        length_B: lengths of the rows, to balance the parts by tokens; None balances them by rows.
    """
    parts = world_size * micro_batches
    if length_B is None:
        return np.split(row_B, parts)[rank::world_size]
    total_B = length_B.cumsum()
    cuts = np.searchsorted(total_B, total_B[-1] * np.arange(1, parts) / parts)
    # No part may be empty: the i-th cut leaves at least i rows before it and one row for each part after it.
    cuts = np.maximum.accumulate(np.maximum(cuts, np.arange(1, parts)) - np.arange(parts - 1)) + np.arange(parts - 1)
    cuts = np.minimum(cuts, len(row_B) - np.arange(parts - 1, 0, -1))
    return np.split(row_B, cuts)[rank::world_size]
