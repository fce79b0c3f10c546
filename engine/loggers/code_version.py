"""The code version of a run for W&B: commit and remote, without credentials of the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any


def code_settings(folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """Return W&B's settings for the commit of this code, in place of those that W&B would detect.

    W&B reads the repository that holds the run folder, which may be another one, and keeps the TOKEN of a remote like
    ``https://TOKEN:x-oauth-basic@host/code.git``.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"disable_git": True}
    return {"git_commit": commit, "git_remote_url": public(_git(folder, "config", "remote.origin.url") or "")}


def public(url: str) -> str:
    """Remove user, password and token from the URL of a remote."""
    return re.sub(r"//[^/]*@", "//", url)


def _git(folder: Path, *words: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
