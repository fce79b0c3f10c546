"""Files that are whole or not there: written in one step, and known by the checksum of every byte."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dinado.errors import UserError

SETTLED_SECONDS = 2.0
"""A file changed again within the clock's resolution looks unchanged; one this old would not."""

_known: dict[Path, tuple[tuple[int, int, int], str]] = {}


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    A process reads a file for this once, and again whenever its inode, size or time of change is another.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    status = path.stat()
    state = (status.st_ino, status.st_size, status.st_mtime_ns)
    if path not in _known or _known[path][0] != state:
        with path.open("rb") as file:
            _known[path] = (state, hashlib.file_digest(file, "sha256").hexdigest())
    found = _known[path][1]
    if time.time() - status.st_mtime < SETTLED_SECONDS:
        del _known[path]
    return found


def write_atomic(path: Path, content: bytes | memoryview, refuse: Callable[[str], UserError]) -> None:
    """Put a file in place in one step: nobody ever sees half of it, not even after a power cut.

    Args:
        refuse: makes the error of a disk that refuses, from what happened; it adds what to do about it.
    """
    # The process id keeps runs that fill the same folder apart.
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise refuse(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):  # there is none after success; a disk that refuses has been reported already
            temporary.unlink()
