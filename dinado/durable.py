"""Atomic writes of files and folders, and checksums of files."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dinado.errors import UserError

SETTLED_SECONDS = 2.0
"""Age from which a digest is cached; a younger file could change again within the clock's resolution unnoticed."""

_known: dict[Path, tuple[tuple[int, int, int], str]] = {}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    The digest is cached in the process until the file's inode, size or modification time changes.

    Raises:
        OSError: the file is missing or cannot be read.
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
    """Write a file atomically and durably; no reader sees half of it, not even after a power cut.

    Args:
        refuse: makes the error of a failed write from the failure's description, and adds the fix.
    """
    # The process id keeps apart the temporary files of runs that fill the same folder.
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
        with suppress(OSError):  # the file is gone after success; a failed write has been reported already
            temporary.unlink()


@contextmanager
def new_folder(path: Path, refuse: Callable[[str], UserError]) -> Iterator[Path]:
    """Give a hidden folder beside ``path`` to fill, which takes the name ``path`` at the end of the block.

    If the block fails or is stopped, nothing is left. An empty folder at ``path`` is replaced, a full one is an error.

    Args:
        refuse: makes the error of a failed write from the failure's description, and adds the fix.
    """
    work = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        work.mkdir()
        yield work
        for file in work.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        work.rename(path)
    except OSError as error:
        raise refuse(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
