"""A callback that makes up for a validation that a stop has prevented."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
from lightning.pytorch.callbacks import Callback


class PendingValidation(Callback):
    """A callback that runs a validation that was due at a resumed run's checkpoint and is missing.

    Checkpoints are saved before the validation of the same step, and Lightning resumes with the step after it.

    Args:
        every: optimiser steps between validations.
        is_recorded: tells whether held-out metrics of a step are recorded.
    """

    def __init__(self, every: int, is_recorded: Callable[[int], bool]) -> None:
        self.every = every
        self.is_recorded = is_recorded

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run the missing validation before the first step; rank 0 decides for all processes."""
        done = trainer.global_step
        due = done > 0 and done % self.every == 0 and not self.is_recorded(done - 1)
        if trainer.strategy.broadcast(due):
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
