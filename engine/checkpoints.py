"""Checkpoints on disk: the last one and the one before, both complete and protected by a checksum.

    checkpoints/last.ckpt
                previous.ckpt
                SHA256SUMS

Only files listed in ``SHA256SUMS`` are read. During the replacement of a checkpoint it lists both the old and the new
one, so after a kill at any moment ``last.ckpt`` is one of the two.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from dinado.durable import file_digest, write_atomic
from dinado.errors import CheckpointError

LAST, PREVIOUS, SUMS = "last.ckpt", "previous.ckpt", "SHA256SUMS"


class DurableCheckpoints(TorchCheckpointIO):
    """A Lightning checkpoint plugin that verifies checksums on reading and replaces files only by complete ones."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; an existing one becomes ``previous.ckpt``.

        Raises:
            CheckpointError: the disk refuses the write; the checkpoint before is still there.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_checkpoint(Path(path), content.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint to the CPU, after a check of its checksum."""
        return read_checkpoint(Path(path))


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint without executing code from it (``weights_only``).

    Raises:
        CheckpointError: it is missing or damaged, or its checksum is missing.
    """
    if not file.is_file():
        raise CheckpointError(f"run {file.parent.parent} has no checkpoint yet ({file} is missing)")
    sums = _sums(file.parent)
    if not sums:
        raise CheckpointError(
            f"{file.parent / SUMS} is missing or unreadable, so nobody knows whether {file.name} is whole; to trust "
            f"it as it is: (cd {file.parent} && sha256sum *.ckpt > {SUMS})"
        )
    if not _is_intact(file, sums):
        raise CheckpointError(f"{file} is damaged (its checksum differs){_way_out(file, sums)}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{file} is damaged ({type(error).__name__}){_way_out(file, sums)}") from None


def write_checkpoint(file: Path, content: memoryview) -> None:
    """Replace a checkpoint and keep the one before as ``previous.ckpt``.

    Raises:
        CheckpointError: the disk refuses the write.
    """
    for left in file.parent.glob("*.tmp-*"):  # left by a process that was killed during a write
        with suppress(OSError):
            left.unlink()
    digest = hashlib.sha256(content).hexdigest()
    before = file.with_name(PREVIOUS)
    old = _sums(file.parent)
    last = file_digest(file) if file.is_file() and _is_intact(file, old) else None
    kept = file_digest(before) if before.is_file() and _is_intact(before, old) else None
    _write_sums(file.parent, [(digest, file.name), (last, file.name), (last, PREVIOUS), (kept, PREVIOUS)])
    if last is not None:
        _keep(file, before)
    write_atomic(file, content, _refused)
    _write_sums(file.parent, [(digest, file.name), (last or kept, PREVIOUS)])


def write_best(file: Path, method: L.LightningModule, step: int) -> None:
    """Write the trained weights alone, in the form that a checkpoint of training has them.

    Raises:
        CheckpointError: the disk refuses the write.
    """
    checkpoint: dict[str, Any] = {"state_dict": method.state_dict(), "global_step": step}
    method.on_save_checkpoint(checkpoint)
    content = io.BytesIO()
    torch.save(checkpoint, content)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(file, content.getbuffer())


def _keep(file: Path, before: Path) -> None:
    """Make ``before`` the same bytes as ``file``, atomically and, where the file system can link, without a copy."""
    part = before.with_name(f"{before.name}.tmp-{os.getpid()}")
    try:
        try:
            os.link(file, part)
        except OSError:
            shutil.copyfile(file, part)
        os.replace(part, before)
    except OSError as error:
        raise _refused(f"{before} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):  # os.replace does nothing, and leaves `part`, if both names are links to one file
            part.unlink()


def _sums(folder: Path) -> set[str]:
    """Read the digests in ``SHA256SUMS``, empty where it is missing or unreadable."""
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    return {line.split()[0] for line in lines if line.strip()}


def _write_sums(folder: Path, entries: Sequence[tuple[str | None, str]]) -> None:
    lines = dict.fromkeys(f"{digest}  {name}\n" for digest, name in entries if digest is not None)
    write_atomic(folder / SUMS, "".join(lines).encode("ascii"), _refused)


def _is_intact(file: Path, sums: set[str]) -> bool:
    return file_digest(file) in sums


def _way_out(file: Path, sums: set[str]) -> str:
    before = file.with_name(PREVIOUS)
    if file.name == LAST and before.is_file() and _is_intact(before, sums):
        return f"; go on from the one before with --resume {before}"
    return f"; remove {file.parent} to train from the start, with the rollouts that are there"


def _refused(reason: str) -> CheckpointError:
    return CheckpointError(f"{reason}; the checkpoint before is still there: free the disk and resume, or set runs")
