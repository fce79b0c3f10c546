"""Where numbers go besides metrics.jsonl: the mode of Weights & Biases, and settings that nothing would read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dinado.errors import ConfigError
from experiments.config import Config
from experiments.origins import said, typed

if TYPE_CHECKING:
    from experiments.loader import Loaded

WANDB_MODES = ("off", "disabled", "offline", "online", "shared")
OFF = ("off", "disabled")
ARTIFACTS = ("checkpoints", "rollouts")
OF_WANDB = tuple(f"logging.{name}" for name in ("project", "group", "name", "tags", "artifacts"))


def wandb_mode(config: Config) -> str:
    """What W&B is asked to do.

    WANDB_MODE in the environment wins over ``logging.wandb``. A W&B agent, which says so by WANDB_SWEEP_ID, waits for
    the numbers of the run that it starts, so for it `off` means online.

    Raises:
        ConfigError: W&B knows no such mode.
    """
    by_agent = bool(os.environ.get("WANDB_SWEEP_ID")) and config.logging.wandb == "off"
    mode = os.environ.get("WANDB_MODE", "online" if by_agent else config.logging.wandb)
    if mode not in WANDB_MODES:
        raise ConfigError(f"WANDB_MODE={mode}: choose one of {', '.join(WANDB_MODES)}")
    return mode


def logging(loaded: Loaded) -> Iterator[str]:
    """Artifacts that there are not, and settings of the command line that belong to W&B, which is off.

    WANDB_MODE is how whoever starts many runs turns W&B on or off for all of them as they are, so it excuses them.
    """
    if not set(loaded.config.logging.artifacts) <= set(ARTIFACTS):
        yield f"{said(loaded, 'logging.artifacts')}: may list {' and '.join(ARTIFACTS)}"
    if "WANDB_MODE" not in os.environ and wandb_mode(loaded.config) in OFF:
        for key in typed(loaded, *OF_WANDB):
            yield f"{said(loaded, key)}: ignored, W&B is off; set logging.wandb=offline (or online)"
