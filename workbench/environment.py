"""Versions, machine and commit of a run, for ``env.json``."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "peft",
    "torchmetrics",
    "datasets",
    "omegaconf",
    "numpy",
    "scipy",
    "wandb",
    "tensorboard",
)


def environment() -> dict[str, Any]:
    """Collect versions, machine and commit for ``env.json``."""
    from importlib import metadata  # slow to import, and --help does without it

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": sys.argv,
        "folder": os.getcwd(),
        "started": datetime.now().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu_count": os.cpu_count(),
        "versions": versions,
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
