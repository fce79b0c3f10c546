"""Which of a run's processes this one is, by the variables that torchrun, srun and our own launcher set."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from dinado.errors import ConfigError, Stopped

LAST_WORDS = "DINADO_LAST_WORDS"
"""Names the file in which a process that another one watches leaves what it died of, in place of printing it."""


def place() -> tuple[int, int]:
    """Rank and number of processes."""
    rank, size = ("RANK", "WORLD_SIZE") if "RANK" in os.environ else ("SLURM_PROCID", "SLURM_NTASKS")
    return (int(os.environ[rank]), int(os.environ[size])) if is_launched() else (0, 1)


def is_launched() -> bool:
    """Whether somebody has started all processes of this run, this one among them."""
    return "RANK" in os.environ or _by_srun(os.environ)


def is_writer() -> bool:
    """Whether this is the first process of the run."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def local_rank() -> int:
    """Which of this machine's processes this one is, and so which of its GPUs it takes."""
    return int(os.environ.get("LOCAL_RANK") or (os.environ["SLURM_LOCALID"] if _by_srun(os.environ) else 0))


def check_place(devices: int, num_nodes: int) -> None:
    """Whether as many processes were started as the settings speak of.

    Raises:
        ConfigError: there are more or fewer, or several machines and nobody who started them, or nothing that they
            could call the run by.
    """
    wanted = devices * num_nodes
    if is_launched() and place()[1] != wanted:
        raise ConfigError(
            f"{place()[1]} processes were started and trainer.devices={devices} x trainer.num_nodes={num_nodes} "
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
    if place()[1] > 1:
        raise ConfigError(
            f"{place()[1]} processes were started and this command runs in one; start it without launcher"
        )


def _by_srun(environment: Mapping[str, str]) -> bool:
    """Whether this is a task of ``srun``; a batch script, or a shell that SLURM gave, is not."""
    return "SLURM_PROCID" in environment and environment.get("SLURM_STEP_ID") not in (None, "", "4294967291")


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
