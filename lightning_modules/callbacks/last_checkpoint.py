"""Keep ``last.ckpt`` up to date."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class LastCheckpoint(Callback):
    """Saves at the end of an optimiser step: every so often, when the run is stopped, and after its last step.

    A checkpoint taken after the loop has ended would count a step too many when it is resumed. It belongs behind the
    callback that stops and before those that act on a saved step.

    Args:
        path: where the checkpoint lies.
        every: optimiser steps between checkpoints.
        also_after: steps that are saved besides, those before a round of sampling.
    """

    def __init__(self, path: Path, every: int, also_after: Collection[int] = ()) -> None:
        self.path = path
        self.every = every
        self.also_after = also_after

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save, if this step ends here and is one to be saved."""
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return
        due = step % self.every == 0 or step in self.also_after or step >= trainer.max_steps
        if due or trainer.should_stop:
            trainer.save_checkpoint(self.path)
