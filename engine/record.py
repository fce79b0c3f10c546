"""A callback that opens the records of a run just before its first optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from engine.loggers.build_loggers import page_of, rewind
from workbench.run_folder import RunFolder


class OpenRecord(Callback):
    """A callback that truncates the records of a resumed run at its checkpoint and saves the settings to W&B.

    Args:
        folder: folder of the run.
        loggers: the loggers that write records.
        resumed_at: optimiser step of the checkpoint; None for a run without one.
        on_start: called once the settings and the checkpoint have been found to fit.
    """

    def __init__(
        self,
        folder: RunFolder,
        loggers: Sequence[Logger],
        resumed_at: int | None,
        on_start: Callable[[], None] | None,
    ) -> None:
        self.folder = folder
        self.loggers = loggers
        self.resumed_at = resumed_at
        self.on_start = on_start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Truncate records and save settings, now that the checkpoint has been restored in full."""
        if self.resumed_at is not None:
            rewind(self.loggers, self.folder, self.resumed_at)
        if self.on_start is not None:
            self.on_start()
        if (page := page_of(self.loggers)) is not None:
            page.save_settings()
