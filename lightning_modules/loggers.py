"""Where numbers go: the run's own metrics.jsonl always, Weights & Biases when asked for."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dinado.errors import ConfigError
from experiments.config import Config
from experiments.run_folder import RunFolder


class MetricsFile(Logger):
    """Lightning logger that appends to ``metrics.jsonl``, one object for each step."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        """Experiment."""
        return self.folder.path.parent.name

    @property
    def version(self) -> str:
        """Run id."""
        return self.folder.run_id

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The resolved configuration is in config.yaml already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the numbers of a step."""
        numbers = {key: value for key, value in metrics.items() if key != "epoch"}
        self.folder.append_metrics({"step": step or 0, **numbers})


WANDB_MODES = ("off", "disabled", "offline", "online", "shared")


def wandb_mode(config: Config) -> str:
    """What W&B is asked to do; WANDB_MODE in the environment wins over ``logging.wandb``.

    Raises:
        ConfigError: it knows no such mode.
    """
    mode = os.environ.get("WANDB_MODE", config.logging.wandb)
    if mode not in WANDB_MODES:
        raise ConfigError(f"WANDB_MODE={mode}: choose one of {', '.join(WANDB_MODES)}")
    return mode


def build_loggers(config: Config, folder: RunFolder) -> list[Logger]:
    """The loggers of a run.

    Raises:
        ConfigError: W&B has no such mode, or refuses to start.
    """
    loggers: list[Logger] = [MetricsFile(folder)]
    mode = wandb_mode(config)
    if mode not in ("off", "disabled"):
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(
            logger := WandbLogger(
                project=config.logging.project,
                name=config.logging.name or f"{folder.path.parent.name}/{config.method}",
                id=folder.run_id,
                save_dir=str(folder.path),
                tags=config.logging.tags,
                config=dataclasses.asdict(config),
                resume="allow",
                # WandbLogger(offline=True) would set WANDB_MODE for every process started from here.
                mode=mode,
            )
        )
        try:
            _ = logger.experiment
        except wandb.Error as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"logging.wandb={mode}: {reason}; use offline or off, or log in") from None
    return loggers


def finish(loggers: list[Logger]) -> None:
    """Close what writes in the background; W&B says here where its files are, not after the last line of output."""
    for logger in loggers[1:]:
        logger.experiment.finish()
