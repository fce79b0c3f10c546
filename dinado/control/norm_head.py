"""The norm head: the step-wise norm of R over next tokens, read from hidden states.

Axes: B rollouts, T response tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinado.objectives.logspace import at_least_float


class NormHead(nn.Module):
    """An MLP (Linear, ReLU, Linear without bias) that predicts the logit of the step-wise norm; 0 when training starts.

    Lu et al., DiNADO (2024): log beta = log sigmoid(MLP(h)). The head may read several depths: the last layer mostly
    encodes the next token, and lower layers may better encode the text so far.

    Args:
        width: D of each state.
        num_taps: the number of states (depths) that it reads.
    """

    def __init__(self, width: int, num_taps: int = 1) -> None:
        super().__init__()
        self.read = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_taps))
        hidden = min(4 * width, 512)
        self.hidden = nn.Sequential(nn.Linear(num_taps * width, hidden), nn.ReLU())
        self.out = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Return logits ``[B, T]`` for ``num_taps`` states ``[B, T, D]``."""
        normed = [read(at_least_float(state)) for read, state in zip(self.read, states, strict=True)]
        return self.out(self.hidden(torch.cat(normed, -1)))[..., 0]
