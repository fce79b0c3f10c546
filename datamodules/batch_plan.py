"""Which rows go into which optimiser step, micro-batch and process; the same on any number of processes.

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
    """How much goes into an optimiser step: so many rollouts, or as many as have so many response tokens together."""

    amount: int
    by_tokens: bool = False

    def share(self, share: float) -> Budget:
        """Part of it, at least 1 and not all."""
        return Budget(min(max(round(share * self.amount), 1), self.amount - 1), self.by_tokens)

    def rows(self, length_N: np.ndarray) -> float:
        """Rollouts that it holds on average, if they are of these lengths."""
        return self.amount / float(length_N.mean()) if self.by_tokens else self.amount


class BatchPlan:
    """An endless sequence of optimiser steps over some rows, the same on any number of processes.

    An epoch is every row once: the rows of each prompt, shuffled, are cut into groups; the groups are shuffled and
    laid end to end; steps are cut from epoch after epoch without regard to where one ends. What is left of an epoch
    opens the next step.

    Args:
        rows: where ``use_N`` points into.
        use_N: rows that take part.
        budget: what goes into an optimiser step; not more than there is.
        rows_per_prompt: largest group of rows of one prompt.
        seed, name: name the random streams.
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
        """The rows of an optimiser step, groups side by side, short responses first."""
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
        """Where a step begins and ends in the stream of all epochs."""
        if not self._budget.by_tokens:
            return index * self._budget.amount, (index + 1) * self._budget.amount
        while len(self._starts) < index + 2:
            epoch, offset = divmod(self._starts[-1], len(self._use_N))
            # An epoch holds the budget, so two hold what is left of one and the next step.
            coming = np.concatenate([self._length_N[self._epoch(epoch + more)[0]] for more in (0, 1)])[offset:]
            fits = int(np.searchsorted(coming.cumsum(), self._budget.amount, side="right"))
            self._starts.append(self._starts[-1] + fits)
        return self._starts[index], self._starts[index + 1]

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions in ``use_N`` in the order of this epoch, and the number of the group each belongs to."""
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
    """Steps with a fixed number of rows from each of several strata, each stratum with epochs of its own.

    Args:
        rows: where the strata point into.
        strata_N: disjoint sets of rows.
        budgets: what each stratum puts into a step.
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
        """The rows of an optimiser step, short responses first."""
        row_B = np.concatenate([plan.step(index) for plan in self._plans])
        return row_B[np.argsort(self._length_N[row_B], kind="stable")]


def stratum_weights(strata_N: Sequence[np.ndarray], counts: Sequence[float]) -> list[float]:
    """What a row of each stratum has to count for so that a step's loss keeps its expectation: N_s / N over n_s / B."""
    num_rows, num_drawn = sum(map(len, strata_N)), sum(counts)
    return [(len(rows) / num_rows) / (count / num_drawn) for rows, count in zip(strata_N, counts, strict=True)]


def micro_batches(optim: OptimConfig, world_size: int) -> int:
    """Micro-batches that one process contributes to an optimiser step.

    Raises:
        ConfigError: rollouts cannot be shared out evenly.
    """
    if optim.batch_tokens is None:
        return accumulation(optim.batch_size, optim.micro_batch, world_size)
    return 1 if optim.micro_tokens is None else -(-optim.batch_tokens // (world_size * optim.micro_tokens))


def accumulation(batch_size: int, micro_batch: int | None, world_size: int) -> int:
    """Micro-batches that one process contributes to an optimiser step.

    Args:
        micro_batch: rows in a micro-batch; None gives each process its whole share at once.

    Raises:
        ConfigError: the step cannot be shared out evenly.
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
    """The micro-batches of one process; neighbours in length go to different processes, so that none waits long.

    Args:
        length_B: lengths of the rows, if the parts are to hold about as many tokens each, not as many rows.
    """
    parts = world_size * micro_batches
    if length_B is None:
        return np.split(row_B, parts)[rank::world_size]
    total_B = length_B.cumsum()
    cuts = np.searchsorted(total_B, total_B[-1] * np.arange(1, parts) / parts)
    # No part may be empty: the i-th cut leaves i rows before it and a row for each part behind it.
    cuts = np.maximum.accumulate(np.maximum(cuts, np.arange(1, parts)) - np.arange(parts - 1)) + np.arange(parts - 1)
    cuts = np.minimum(cuts, len(row_B) - np.arange(parts - 1, 0, -1))
    return np.split(row_B, cuts)[rank::world_size]
