"""The distribution that is sampled: that of a model, flattened or truncated.

Axes: N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """A change of a next-token distribution, relative to the model that is sampled.

    Attributes:
        temperature: divides log-probabilities; above 1 it flattens.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens with this mass; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def is_base(self) -> bool:
        """Whether samples are exact draws from the model."""
        return self.temperature == 1.0 and not self.truncates

    @property
    def truncates(self) -> bool:
        """Whether some tokens can never be drawn, which importance weights cannot correct."""
        return self.top_k > 0 or self.top_p < 1.0

    def log_probs(self, log_p_NV: Tensor) -> Tensor:
        """Return the normalised log-probabilities that are sampled from, -inf outside the support."""
        if self.is_base:
            return log_p_NV
        log_s_NV = (log_p_NV / self.temperature).log_softmax(1)
        if self.top_k and self.top_k < log_s_NV.shape[1]:
            smallest_N1 = log_s_NV.topk(self.top_k, dim=1).values[:, -1:]
            log_s_NV = log_s_NV.masked_fill(log_s_NV < smallest_N1, -torch.inf)
        if self.top_p < 1.0:
            sorted_NV, order_NV = log_s_NV.log_softmax(1).sort(dim=1, descending=True)
            before_NV = sorted_NV.exp().cumsum(1) - sorted_NV.exp()
            drop_NV = torch.zeros_like(log_s_NV, dtype=torch.bool).scatter(1, order_NV, before_NV >= self.top_p)
            log_s_NV = log_s_NV.masked_fill(drop_NV, -torch.inf)
        return log_s_NV.log_softmax(1)
