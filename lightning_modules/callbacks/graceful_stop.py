"""Stop on a signal without losing anything."""

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
"""How schedulers announce that they will take the machine away."""


def interruption(number: int) -> KeyboardInterrupt:
    """What to raise on a signal: that of a Ctrl-C, or of a scheduler's warning."""
    name = signal.Signals(number).name
    return Stopped(name) if number in BY_SCHEDULER else KeyboardInterrupt(name)


@contextmanager
def interruptible() -> Iterator[None]:
    """A scheduler's warning stops the block as a Ctrl-C does, so that it leaves a true STATUS and a hint too."""
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
    """First Ctrl-C, SIGTERM or SIGUSR1: finish the optimiser step, then stop. Second Ctrl-C: stop now.

    Every process has to agree on the step to stop at, so the flag is reduced over processes; that needs a collective,
    which is run every ``every`` optimiser steps only.

    Args:
        every: optimiser steps between looks at the flag.

    Attributes:
        received: number of the signal; None as long as there was none.
    """

    def __init__(self, every: int = 1) -> None:
        self.received: int | None = None
        self.every = every
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Install the handlers; only the main thread may."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in (signal.SIGINT, *BY_SCHEDULER):
                self._previous[number] = signal.signal(number, self._handle)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take SIGTERM back from Lightning, whose handler starts a collective of its own in the middle of others'."""
        if self._previous:
            signal.signal(signal.SIGTERM, self._handle)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop together after an optimiser step."""
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
            trainer.limit_val_batches = 0  # who is about to take the machine away does not wait for a validation

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the handlers back."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None and is_writer():
            print("\nstopping after this step (Ctrl-C again stops at once)", flush=True)
        self.received = number
