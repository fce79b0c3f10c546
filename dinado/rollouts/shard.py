"""One block of rows on disk: an Arrow file that is either whole or treated as not there.

The checksum of every byte lies beside the file (``sha256sum`` format), so a file that was cut short or changed is
noticed before Arrow parses it. Files appear under their name only when they are complete.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from dinado.errors import StoreError

SETTLED_SECONDS = 2.0
"""A file changed again within the clock's resolution looks unchanged; one this old would not."""


def intact_digest(path: Path) -> str | None:
    """SHA-256 of a shard, or None when it is missing or not as it was written.

    A process reads a file for this once, and again whenever its inode, size or time of change is another.
    """
    try:
        expected = _digest_path(path).read_text(encoding="ascii").split()[0]
        status = path.stat()
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
        if path not in _known or _known[path][0] != state:
            _known[path] = (state, hashlib.sha256(path.read_bytes()).hexdigest())
        found = _known[path][1]
        if time.time() - status.st_mtime < SETTLED_SECONDS:
            del _known[path]
    except (OSError, UnicodeDecodeError, IndexError):
        return None
    return found if found == expected else None


_known: dict[Path, tuple[tuple[int, int, int], str]] = {}


def shard_digest(table: pa.Table) -> str:
    """SHA-256 of the shard that :func:`write_shard` would write."""
    return hashlib.sha256(_content(table)).hexdigest()


def write_shard(path: Path, table: pa.Table) -> str:
    """Write ``table`` to ``path`` atomically and durably; returns its SHA-256.

    Raises:
        StoreError: the disk refuses.
    """
    content = _content(table)
    digest = hashlib.sha256(content).hexdigest()
    # Killed between the two, a missing or differing shard is found, and the block is made again.
    write_atomic(_digest_path(path), f"{digest}  {path.name}\n".encode("ascii"))
    write_atomic(path, content)
    return digest


def open_shard(path: Path) -> pa.Table:
    """The rows of a shard, mapped into memory. Only for shards that :func:`intact_digest` has passed."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_atomic(path: Path, content: bytes) -> None:
    """Put a file in place in one step: nobody ever sees half of it, not even after a power cut.

    Raises:
        StoreError: the disk refuses.
    """
    # The process id keeps runs that fill the same store apart.
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; free the disk or set data.cache") from None
    finally:
        with suppress(OSError):  # there is none after success; a disk that refuses has been reported already
            temporary.unlink()


def _content(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
