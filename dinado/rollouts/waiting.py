"""Waiting for the blocks that other processes write."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dinado.errors import StoreError

LIMIT_SECONDS = 3600.0
"""Time without a new block after which the other processes are taken to be gone or to write elsewhere."""


def wait_for_blocks(
    num_blocks: int, has_block: Callable[[int], bool], folder: Path, poll_seconds: float, limit_seconds: float
) -> None:
    """Wait until all blocks are there.

    Raises:
        StoreError: no block has been added for ``limit_seconds``.
    """
    missing, since = list(range(num_blocks)), time.monotonic()
    while missing:
        left = [block for block in missing if not has_block(block)]
        if len(left) < len(missing):
            missing, since = left, time.monotonic()
            continue
        if time.monotonic() - since > limit_seconds:
            raise StoreError(
                f"{folder}: block {missing[0]} belongs to another process, which has added none for "
                f"{limit_seconds / 60:.3g} minutes; it is gone or writes to another folder: all processes need the "
                "same data.cache and an oracle with the same fingerprint"
            )
        time.sleep(poll_seconds)
