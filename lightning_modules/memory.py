"""Peak memory of a process."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_mb() -> float:
    """Return the peak memory of this process in MB: on the GPU when there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
