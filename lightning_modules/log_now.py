"""Immediate logging, outside Lightning's own schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger


def log_now(loggers: Sequence[Logger], numbers: Mapping[str, Any], step: int) -> None:
    """Log metrics to all loggers and save them, so that they are on disk before the checkpoint of their step."""
    for logger in loggers:
        logger.log_metrics(dict(numbers), step=step)
        logger.save()
