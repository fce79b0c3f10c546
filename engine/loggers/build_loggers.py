"""The loggers of a run: what is asked for, giving numbers to all of them, going on after a stop, the end."""

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
    """What can be known before anything is sampled.

    Raises:
        ConfigError: W&B has no such mode, or TensorBoard is asked for and not installed.
    """
    wandb_mode(config)
    if config.logging.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError("logging.tensorboard=true: TensorBoard is missing; install it with: pip install tensorboard")


def build_loggers(config: Config, folder: RunFolder, resumed_at: int | None = None) -> list[Logger]:
    """The loggers of a run, metrics.jsonl first: what another logger has, the record has.

    Args:
        resumed_at: optimiser steps that are done; None for a run that starts.

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
    """Forget records from an optimiser step on, which a run that goes on from there writes again."""
    folder.truncate_metrics(step)
    for logger in loggers:
        if isinstance(logger, CsvTable):
            logger.rewrite(_with_nan(record) for record in folder.metrics())


def page_of(loggers: Sequence[Logger]) -> WandbPage | None:
    """The logger that writes to W&B, if there is one."""
    return next((logger for logger in loggers if isinstance(logger, WandbPage)), None)


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Whatever ends the block, files are whole after it, and W&B says before the final table where its own are."""
    try:
        yield
    except BaseException:
        finish(loggers, exit_code=1)
        raise


def finish(loggers: Sequence[Logger], exit_code: int = 0) -> None:
    """Close what writes in the background.

    Args:
        exit_code: of the run; W&B shows anything but 0 as a run that did not finish.
    """
    for logger in loggers:
        logger.finalize("success" if exit_code == 0 else "failed")
    if (page := page_of(loggers)) is not None:
        page.experiment.finish(exit_code=exit_code)


def _with_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in record.items()}
