"""A callback that keeps ``last.ckpt`` up to date."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class LastCheckpoint(Callback):
    """A callback that saves after an optimiser step: periodically, when the run is stopped, and after the last step.

    A checkpoint saved after the loop has ended would count one step too many when the run resumes. The callback belongs
    after the one that stops and before those that act on a saved step.

    Args:
        path: file of the checkpoint.
        every: optimiser steps between checkpoints.
        also_after: further steps after which to save, those before a round of sampling.
    """

    def __init__(self, path: Path, every: int, also_after: Collection[int] = ()) -> None:
        self.path = path
        self.every = every
        self.also_after = also_after

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save, if an optimiser step ends with this batch and a checkpoint is due."""
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return
        due = step % self.every == 0 or step in self.also_after or step >= trainer.max_steps
        if due or trainer.should_stop:
            trainer.save_checkpoint(self.path)
