"""Which of a run's processes this one is, by the variables that torchrun, srun and our own launcher set."""

from __future__ import annotations

import os


def rank_and_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    rank, size = ("RANK", "WORLD_SIZE") if "RANK" in os.environ else ("SLURM_PROCID", "SLURM_NTASKS")
    return (int(os.environ[rank]), int(os.environ[size])) if is_launched() else (0, 1)


def is_launched() -> bool:
    """Tell whether somebody has started all processes of this run, this one among them."""
    return "RANK" in os.environ or _by_srun()


def is_writer() -> bool:
    """Tell whether this is rank 0, the only process that writes to the run folder."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def local_rank() -> int:
    """Return the rank of this process on its machine, and so the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or (os.environ["SLURM_LOCALID"] if _by_srun() else 0))


def _by_srun() -> bool:
    """Tell whether this is a task of ``srun``; a batch script, or a shell that SLURM gave, is not."""
    return "SLURM_PROCID" in os.environ and os.environ.get("SLURM_STEP_ID") not in (None, "", "4294967291")
