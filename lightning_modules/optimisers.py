"""Optimisers and learning-rate schedules, with the number of steps from the settings.

Lightning's own step estimate would rebuild the training loader before its position has been restored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dinado.imports import imported
from dinado.parameters.parameterisation import MatrixPair, Parameterisation
from workbench.settings.optimiser_table import OPTIMISERS
from workbench.settings.run_settings import OptimConfig


class Trained(NamedTuple):
    """Trained weights that share a learning rate.

    Attributes:
        parameters: the weights, in the order in which gradients are clipped.
        lr: peak learning rate.
        pairs: low-rank pairs among them, for optimisers that treat the two matrices together.
    """

    parameters: list[nn.Parameter]
    lr: float
    pairs: list[MatrixPair]


Build = Callable[[list[Trained], OptimConfig], Optimizer]


def configure(settings: OptimConfig, scores: Parameterisation, norm_head: nn.Module | None) -> dict[str, Any]:
    """Build optimiser and scheduler in Lightning's format; the norm head may have its own learning rate."""
    trained = [Trained(group, settings.lr, scores.pairs()) for group in scores.groups()]
    if norm_head is not None:
        trained.append(Trained(list(norm_head.parameters()), settings.norm_lr or settings.lr, []))
    build: Build = imported(OPTIMISERS[settings.name])
    optimizer = build(trained, settings)
    scheduler = LambdaLR(optimizer, lambda step: rate(step, settings))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def adamw(trained: list[Trained], settings: OptimConfig) -> AdamW:
    """Build AdamW with weight decay on matrices only."""
    groups = []
    for parameters, lr, _ in trained:
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        groups += [
            {"params": some, "lr": lr, "weight_decay": decay}
            for some, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
            if some
        ]
    return AdamW(groups, lr=settings.lr, betas=(settings.betas[0], settings.betas[1]))


def rate(step: int, settings: OptimConfig) -> float:
    """Return the learning rate at a step as a share of its peak: linear warm-up, then constant or decaying to 0."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, settings.steps - warmup))
    if settings.schedule == "constant":
        return 1.0
    return 1.0 - progress if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
