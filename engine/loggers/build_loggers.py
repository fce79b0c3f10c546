"""The loggers of a run: checks, construction, rewinding for a resumed run, closing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.loggers import Logger

from dinado.errors import ConfigError
from engine.loggers.local_files import CsvTable, EventFiles, MetricsFile
from engine.loggers.wandb_page import WandbPage, start
from workbench.run_folder import RunFolder
from workbench.settings.conditions import OFF, wandb_mode
from workbench.settings.config import Config


def check_loggers(config: Config) -> None:
    """Check the settings of the loggers before anything is sampled.

    Raises:
        ConfigError: W&B has no such mode, or TensorBoard is asked for and not installed.
    """
    wandb_mode(config)
    if config.logging.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError("logging.tensorboard=true: TensorBoard is missing; install it with: pip install tensorboard")


def build_loggers(config: Config, folder: RunFolder, resumed_at: int | None = None) -> list[Logger]:
    """Build the loggers of a run, metrics.jsonl first, so that it has everything that another logger has.

    Args:
        resumed_at: number of completed optimiser steps; None for a new run.

    Raises:
        ConfigError: W&B has no such mode, or refuses to start.
    """
    loggers: list[Logger] = [MetricsFile(folder)]
    if config.logging.csv:
        loggers.append(CsvTable(folder))
    if config.logging.tensorboard:
        loggers.append(EventFiles(folder, resumed_at))
    if wandb_mode(config) not in OFF:
        loggers.append(start(config, folder))
    return loggers


def rewind(loggers: Sequence[Logger], folder: RunFolder, step: int) -> None:
    """Drop the records of an optimiser step and later, which a run resumed from there writes again."""
    folder.truncate_metrics(step)
    for logger in loggers:
        if isinstance(logger, CsvTable):
            logger.rewrite(_with_nan(record) for record in folder.metrics())


def page_of(loggers: Sequence[Logger]) -> WandbPage | None:
    """Return the W&B logger, None if there is none."""
    return next((logger for logger in loggers if isinstance(logger, WandbPage)), None)


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Finish the loggers if the block raises, so that their files are complete; else the block finishes them."""
    try:
        yield
    except BaseException:
        finish(loggers, exit_code=1)
        raise


def finish(loggers: Sequence[Logger], exit_code: int = 0) -> None:
    """Finalise all loggers and finish the W&B run.

    Args:
        exit_code: exit code of the run; W&B shows anything but 0 as a run that did not finish.
    """
    for logger in loggers:
        logger.finalize("success" if exit_code == 0 else "failed")
    if (page := page_of(loggers)) is not None:
        page.experiment.finish(exit_code=exit_code)


def _with_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in record.items()}
