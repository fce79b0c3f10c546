"""The name of a run, the same in all of its processes and after a restart of its job."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Sequence

from dinado.errors import ConfigError
from dinado.ranks import is_writer
from workbench.run_status import started

RUN_ID = "DINADO_RUN_ID"


def choose_run_id(words: Sequence[str] = ()) -> str:
    """Choose the id of this run, the same in all of its processes, and export it for launched processes.

    The first of these that exists: the id that the launching process exported, ``WANDB_RUN_ID``, the scheduler's job
    with a hash of ``words`` (so that a requeued job finds its folder and two commands of one job get two), the time.

    Args:
        words: words that distinguish this run from others of the same job, such as the experiment and its overrides.

    Raises:
        ConfigError: the id is a path, or has a character that W&B refuses.
    """
    job = job_name()
    if not is_writer() and os.environ.get(RUN_ID):
        chosen = os.environ[RUN_ID]
    elif os.environ.get("WANDB_RUN_ID"):
        chosen = os.environ["WANDB_RUN_ID"]
    elif job:
        chosen = f"{job}-{hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()[:4]}"
    else:
        chosen = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    if re.search(r"[/\\\\#?%:\x00-\x1f]", chosen) or chosen.strip(". ") == "":
        raise ConfigError(f"WANDB_RUN_ID={chosen}: it names the folder of the run; give it no / \\ # ? % or :")
    os.environ[RUN_ID] = chosen
    return chosen


def job_name() -> str:
    """Return the name of the SLURM or torchrun job, equal on all machines and after a restart; empty without a job."""
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"slurm{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    if os.environ.get("SLURM_JOB_ID"):
        return f"slurm{os.environ['SLURM_JOB_ID']}"
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if not name:
        return ""
    if name == "none":  # torchrun without --rdzv-id: the torchrun process identifies the launch
        name = f"{os.getppid()} {started(os.getppid())}"
    return f"elastic{hashlib.sha256(name.encode()).hexdigest()[:8]}"
