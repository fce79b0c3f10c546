"""Starting the processes of a run: whether as many run as the settings ask for, and how one of them fails or stops."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dinado.errors import ConfigError, Stopped
from dinado.ranks import is_launched, rank_and_size

LAST_WORDS = "DINADO_LAST_WORDS"
"""Names the file in which a process that another one watches leaves what it died of, in place of printing it."""


def check_place(devices: int, num_nodes: int) -> None:
    """Whether as many processes were started as the settings speak of.

    Raises:
        ConfigError: there are more or fewer, or several machines and nobody who started them, or nothing that they
            could call the run by.
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
    """For commands that one process runs.

    Raises:
        ConfigError: several were started.
    """
    if rank_and_size()[1] > 1:
        raise ConfigError(
            f"{rank_and_size()[1]} processes were started and this command runs in one; start it without launcher"
        )


def say(text: str) -> None:
    """Print an error on stderr, or leave it to the process that watches this one."""
    file = os.environ.get(LAST_WORDS)
    if file is None:
        print(text, file=sys.stderr, flush=True)
    else:
        Path(file).write_text(text.removeprefix("error: "), encoding="utf-8")


def exit_code_of(stop: KeyboardInterrupt) -> int:
    """What a process that was asked to stop ends with."""
    return stop.exit_code if isinstance(stop, Stopped) else 130
