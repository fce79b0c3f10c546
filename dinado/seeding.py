"""Named random streams: every draw in the project comes from a generator with a name.

A stream is identified by words and integers, e.g. ``generator(seed, "batches", epoch)``, so it does not depend on
earlier draws, on the number of processes, or on Lightning's global seeding.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(*names: int | str) -> int:
    """Derive a 63-bit seed from a stream's name; equal names give equal seeds on every machine."""
    return int.from_bytes(_digest(names)[:8], "big") >> 1


def generator(*names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for the stream called ``names``."""
    return torch.Generator(device=device).manual_seed(derive_seed(*names))


def uniform_numbers(count: int, *names: int | str) -> np.ndarray:
    """Draw ``count`` numbers in [0, 1) in float64, where there may be millions of streams.

    torch's generator on a CPU distinguishes only 2**32 seeds, so some of a million streams would coincide; Philox
    (Salmon et al., 2011) takes 128 bits of the name.
    """
    key = int.from_bytes(_digest(names)[:16], "big")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def _digest(names: tuple[int | str, ...]) -> bytes:
    text = "/".join(f"{type(name).__name__}:{name}" for name in names)
    return hashlib.sha256(text.encode()).digest()
