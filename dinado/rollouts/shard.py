"""One block of rows on disk: an Arrow file that is either intact or treated as missing.

The checksum of the whole file lies beside it (``sha256sum`` format), so a truncated or changed file is noticed before
Arrow parses it. Files appear under their name only when they are complete.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa

from dinado.durable import file_digest, write_atomic
from dinado.errors import StoreError


def intact_digest(path: Path) -> str | None:
    """Return the SHA-256 of a shard, or None if it is missing or damaged."""
    try:
        expected = _digest_path(path).read_text(encoding="ascii").split()[0]
        found = file_digest(path)
    except (OSError, UnicodeDecodeError, IndexError):
        return None
    return found if found == expected else None


def shard_digest(table: pa.Table) -> str:
    """Return the SHA-256 of the shard that :func:`write_shard` would write."""
    return hashlib.sha256(_content(table)).hexdigest()


def write_shard(path: Path, table: pa.Table) -> str:
    """Write ``table`` to ``path`` atomically and durably; return its SHA-256.

    Raises:
        StoreError: the file cannot be written.
    """
    content = _content(table)
    digest = hashlib.sha256(content).hexdigest()
    # A run killed between the two leaves a missing or differing shard, and the block is made again.
    write_whole(_digest_path(path), f"{digest}  {path.name}\n".encode("ascii"))
    write_whole(path, content)
    return digest


def open_shard(path: Path) -> pa.Table:
    """Return the rows of a shard, mapped into memory; only for shards that :func:`intact_digest` has passed."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of the rollout cache atomically.

    Raises:
        StoreError: the file cannot be written.
    """
    write_atomic(path, content, lambda reason: StoreError(f"{reason}; free the disk or set data.cache"))


def _content(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
