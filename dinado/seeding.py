"""Named random streams: every draw in the project comes from a generator with a name.

A stream is identified by words and integers, e.g. ``generator(seed, "rollouts", round, block)``, so it does
not depend on what was drawn before it, on the number of processes, or on Lightning's global seeding.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*names: int | str) -> int:
    """A 63-bit seed from a stream's name; equal names give equal seeds on every machine."""
    text = "/".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for the stream called ``names``."""
    return torch.Generator(device=device).manual_seed(derive_seed(*names))
