"""Log numbers at once, outside Lightning's own schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger


def log_now(loggers: Sequence[Logger], numbers: Mapping[str, Any], step: int) -> None:
    """Give numbers to all loggers, on disk before the checkpoint that counts their step."""
    for logger in loggers:
        logger.log_metrics(dict(numbers), step=step)
        logger.save()
