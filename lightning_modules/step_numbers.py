"""Metrics of a whole optimiser step, over the micro-batches of all ranks, each by its weight.

Axes: N values of one metric.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


class StepNumbers:
    """An accumulator of weighted means and maxima over micro-batches; ranks are reduced when the step is complete."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._largest: dict[str, Tensor] = {}

    def mean(self, name: str, value_N: Tensor, weight_N: Tensor | None = None) -> None:
        """Add values to a mean, each with a weight of 1 unless others are given."""
        value_N = value_N.detach().double()
        weight_N = torch.ones_like(value_N) if weight_N is None else weight_N.double()
        added = torch.stack([(value_N * weight_N).sum(), weight_N.sum()])
        self._sums[name] = self._sums[name] + added if name in self._sums else added

    def largest(self, name: str, value_N: Tensor) -> None:
        """Add values to a maximum."""
        value = value_N.detach().double().max()
        self._largest[name] = torch.maximum(self._largest[name], value) if name in self._largest else value

    def reduce(self) -> Mapping[str, float]:
        """Return every metric over all micro-batches and ranks, and reset the accumulator.

        Every rank has to call it in the same step, with the same names.
        """
        found: dict[str, float] = {}
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        for numbers, operation in ((self._sums, dist.ReduceOp.SUM), (self._largest, dist.ReduceOp.MAX)):
            if not numbers:
                continue
            stacked = torch.stack(list(numbers.values()))
            if several:
                dist.all_reduce(stacked, operation)
            for name, row in zip(numbers, stacked.tolist(), strict=True):
                found[name] = row if isinstance(row, float) else row[0] / row[1] if row[1] else 0.0
        self._sums, self._largest = {}, {}
        return found
