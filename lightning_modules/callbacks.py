"""Stopping without losing anything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM is a Ctrl-C while this lasts, so that a scheduler's warning leaves a true STATUS and a hint too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class GracefulStop(Callback):
    """First Ctrl-C or SIGTERM: finish the optimiser step, then stop. Second Ctrl-C: stop now.

    Every process has to agree on the step to stop at, so the flag is reduced over processes; that needs a collective,
    which is run every ``every`` optimiser steps only. The last step, of a stopped run or a finished one, is saved here:
    a checkpoint taken after the loop has ended would count a step too many when it is resumed.

    Args:
        checkpoint: where the last step is saved.
        every: optimiser steps between looks at the flag.
        saved_after: steps that are saved besides, those before a round of sampling.
    """

    def __init__(self, checkpoint: Path, every: int = 1, saved_after: Collection[int] = ()) -> None:
        self.received: int | None = None
        self.checkpoint = checkpoint
        self.every = every
        self.saved_after = saved_after
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Install the handlers; only the main thread may."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop together after an optimiser step."""
        last = trainer.global_step >= trainer.max_steps
        if trainer.fit_loop._should_accumulate() or (trainer.global_step % self.every and not last):
            return
        flag = float(self.received or 0)
        if trainer.world_size > 1:
            everyone = torch.tensor(flag, device=trainer.strategy.root_device)
            flag = float(trainer.strategy.reduce(everyone, reduce_op="sum"))
        if flag:
            self.received = self.received or signal.SIGTERM
            trainer.should_stop = True
        if flag or last or trainer.global_step in self.saved_after:
            trainer.save_checkpoint(self.checkpoint)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the handlers back."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        print("\nstopping after this step (Ctrl-C again stops at once)", flush=True)
