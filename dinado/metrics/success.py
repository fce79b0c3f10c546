"""Means over all processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """The weighted mean ``sum w x / sum w`` of all values of all processes, e.g. the success rate from oracle scores.

    It is a ratio of sums, so that processes with more values count for more. It is NaN before the first value.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    num: Tensor
    den: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("num", "den"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, weights: Tensor | float = 1.0) -> None:
        """Add values [...] with weights of the same shape, or one weight for all."""
        values = torch.as_tensor(values).to(self.num)
        weights = torch.as_tensor(weights).to(self.num).expand_as(values)
        self.num += (weights * values).sum()
        self.den += weights.sum()

    def compute(self) -> Tensor:
        return self.num / self.den
