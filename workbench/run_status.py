"""``STATUS`` of a run folder: its state, and which process wrote it.

A run that was killed is recognised by the host, process id and start time of its writer.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def status(path: str | Path) -> str:
    """Return ``running``, ``finished``, ``interrupted``, ``failed: <reason>``, ``killed`` or ``unknown`` (no STATUS).

    A run is ``killed`` if its ``STATUS`` is running and its process on this host is gone.
    """
    try:
        line = (Path(path) / "STATUS").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except FileNotFoundError:
        return "unknown"
    owner = owner_of(Path(path))
    here = owner.get("host") == socket.gethostname()
    pid = owner.get("pid")
    if line == "running" and here and started(pid if isinstance(pid, int) else 0) != owner.get("started"):
        return "killed"
    return line


def identity() -> dict[str, Any]:
    pid = os.getpid()
    job = {"job": os.environ.get("SLURM_JOB_ID"), "restart": os.environ.get("SLURM_RESTART_COUNT", "0")}
    return {"host": socket.gethostname(), "pid": pid, "started": started(pid), **(job if job["job"] else {})}


def is_requeued(owner: Mapping[str, Any], us: Mapping[str, Any]) -> bool:
    """Tell whether the owner is an earlier start of this job; SLURM ends all of its processes before a restart."""
    return "job" in us and owner.get("job") == us["job"] and owner.get("restart") != us["restart"]


def owner_of(path: Path) -> dict[str, Any]:
    """Return the identity of the writer of ``STATUS``, empty when it is missing or unreadable."""
    try:
        owner = json.loads((path / "STATUS").read_text(encoding="utf-8", errors="replace").partition("\n")[2])
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return owner if isinstance(owner, dict) else {}


def started(pid: int) -> str | None:
    """Return the start time of a process of this host, unique to that process; None if it is not running."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{fields[19]} {boot}"
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
