"""Checks of the number of launched processes, and how a process of a run reports its error and its exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dinado.errors import ConfigError, Stopped
from dinado.ranks import is_launched, rank_and_size

LAST_WORDS = "DINADO_LAST_WORDS"
"""Environment variable with the file to which a watched process writes its error instead of printing it."""


def check_place(devices: int, num_nodes: int) -> None:
    """Check that as many processes were started as the settings ask for.

    Raises:
        ConfigError: the number differs, or the settings ask for several machines without a launcher, or the machines
            have no common name for the run.
    """
    wanted, started = devices * num_nodes, rank_and_size()[1]
    if is_launched() and started != wanted:
        raise ConfigError(
            f"{started} processes were started and trainer.devices={devices} x trainer.num_nodes={num_nodes} "
            f"is {wanted}; make them agree"
        )
    if not is_launched() and num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={num_nodes}: start this command on every machine with torchrun or srun "
            "(docs/processes.md)"
        )
    if num_nodes > 1 and os.environ.get("TORCHELASTIC_RUN_ID") == "none" and not os.environ.get("WANDB_RUN_ID"):
        raise ConfigError("machines have to agree on the name of the run: give torchrun --rdzv-id NAME on each of them")


def check_alone() -> None:
    """Check that a command for a single process was started once.

    Raises:
        ConfigError: several processes were started.
    """
    if rank_and_size()[1] > 1:
        raise ConfigError(
            f"{rank_and_size()[1]} processes were started and this command runs in one; start it without launcher"
        )


def say(text: str) -> None:
    """Print an error on stderr, or write it to the file that the watching process reads."""
    file = os.environ.get(LAST_WORDS)
    if file is None:
        print(text, file=sys.stderr, flush=True)
    else:
        Path(file).write_text(text.removeprefix("error: "), encoding="utf-8", errors="backslashreplace")


def exit_code_of(stop: KeyboardInterrupt) -> int:
    """Return the exit code of a process that was asked to stop."""
    return stop.exit_code if isinstance(stop, Stopped) else 130
