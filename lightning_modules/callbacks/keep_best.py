"""A callback that keeps the weights that came nearest to q*."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

DISTANCE = "kl_to_optimum"


class KeepBest(Callback):
    """A callback that keeps a copy of the weights after a validation with a smaller KL(q*||q) than all before.

    A validation that withholds the distance is passed over. The copy is part of every checkpoint, so a resumed run goes
    on with what it had found up to there. The callback belongs after the one that makes up for a missing validation.

    Args:
        every: optimiser steps between validations.
        measure: computes KL(q*||q) of the present weights, in nats; called on every process.

    Attributes:
        kl: the smallest KL(q*||q) so far, in nats; infinite before the first.
        step: number of optimiser steps done then.
        weights: the trained parameters then, on the CPU.
    """

    def __init__(self, every: int, measure: Callable[[], float]) -> None:
        self.kl = math.inf
        self.step: int | None = None
        self.weights: dict[str, Tensor] = {}
        self._every = every
        self._measure = measure
        self._considered = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Consider the weights that were validated."""
        found = trainer.callback_metrics.get(f"val/{DISTANCE}", math.nan)
        self._consider(trainer, pl_module, float(found))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Consider the weights of a checkpoint, which was saved before the validation of the same step."""
        if trainer.global_step and trainer.global_step % self._every == 0:
            self.consider_now(trainer, pl_module)

    def consider_now(self, trainer: L.Trainer, method: L.LightningModule) -> None:
        """Measure and consider the present weights, unless that has been done."""
        if self._considered != trainer.global_step:
            self._consider(trainer, method, self._measure())

    def _consider(self, trainer: L.Trainer, method: L.LightningModule, kl: float) -> None:
        """Copy the weights if they are nearer than all before; the distance of rank 0 decides for all."""
        kl, self._considered = trainer.strategy.broadcast(kl), trainer.global_step
        if kl < self.kl:  # false for NaN
            self.kl, self.step = kl, trainer.global_step
            self.weights = {name: value.detach().cpu().clone() for name, value in method.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept."""
        return {"kl": self.kl, "step": self.step, "weights": self.weights, "considered": self._considered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        self.kl, self.step, self.weights = state_dict["kl"], state_dict["step"], state_dict["weights"]
        self._considered = state_dict["considered"]
