"""AdamW with warm-up and decay, in steps counted by us.

Lightning's own step estimate would rebuild the training loader before its position has been restored.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from experiments.config import OptimConfig


def configure(settings: OptimConfig, scores: nn.Module, norm_head: nn.Module | None) -> dict[str, Any]:
    """Optimiser and schedule in Lightning's format; the norm head may have a learning rate of its own."""
    groups = []
    for module, lr in ((scores, settings.lr), (norm_head, settings.norm_lr or settings.lr)):
        if module is None:
            continue
        trained = [p for p in module.parameters() if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups += [
            {"params": params, "lr": lr, "weight_decay": decay}
            for params, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
            if params
        ]
    optimizer = AdamW(groups, lr=settings.lr, betas=(settings.betas[0], settings.betas[1]))
    scheduler = LambdaLR(optimizer, lambda step: rate(step, settings))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def rate(step: int, settings: OptimConfig) -> float:
    """Share of the peak learning rate at an optimiser step: linear warm-up, then the schedule down to 0."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, settings.steps - warmup))
    if settings.schedule == "constant":
        return 1.0
    return 1.0 - progress if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
