"""A callback that stops training on a signal without loss of the current optimiser step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from dinado.errors import Stopped
from dinado.ranks import is_writer

BY_SCHEDULER = (signal.SIGTERM, signal.SIGUSR1)
"""Signals with which a scheduler announces that it will end the job."""


def interruption(number: int) -> KeyboardInterrupt:
    """Return the exception to raise on a signal: :class:`Stopped` for a scheduler's, else KeyboardInterrupt."""
    name = signal.Signals(number).name
    return Stopped(name) if number in BY_SCHEDULER else KeyboardInterrupt(name)


@contextmanager
def interruptible() -> Iterator[None]:
    """Stop the block on a scheduler's signal as on Ctrl-C, so that it too leaves a correct STATUS and a hint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise interruption(number)

    previous = {number: signal.signal(number, stop) for number in BY_SCHEDULER}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class GracefulStop(Callback):
    """A callback that stops after the optimiser step on Ctrl-C, SIGTERM or SIGUSR1, and at once on a second Ctrl-C.

    All processes have to stop at the same step, so the flag is reduced over processes; that needs a collective, which
    runs every ``every`` optimiser steps only.

    Args:
        every: optimiser steps between checks of the flag.

    Attributes:
        received: number of the signal; None until there is one.
    """

    def __init__(self, every: int = 1) -> None:
        self.received: int | None = None
        self.every = every
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Install the signal handlers, which only the main thread may do."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in (signal.SIGINT, *BY_SCHEDULER):
                self._previous[number] = signal.signal(number, self._handle)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace Lightning's SIGTERM handler, which would start a collective in the middle of another one."""
        if self._previous:
            signal.signal(signal.SIGTERM, self._handle)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop all processes after the same optimiser step, if any of them received a signal."""
        last = trainer.global_step >= trainer.max_steps
        if trainer.fit_loop._should_accumulate() or (trainer.global_step % self.every and not last):
            return
        flag = float(self.received or 0)
        if trainer.world_size > 1:
            everyone = torch.tensor(flag, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(everyone, torch.distributed.ReduceOp.MAX)
            flag = float(everyone)
        if flag:
            self.received = int(flag)
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # A scheduler that ends the job does not wait for a validation.

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None and is_writer():
            print("\nstopping after this step (Ctrl-C again stops at once)", flush=True)
        self.received = number
