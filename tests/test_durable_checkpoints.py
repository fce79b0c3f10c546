"""Checkpoints on disk: checked when read, replaced in one step, the one before kept."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from dinado import durable
from dinado.errors import CheckpointError
from engine import checkpoints
from engine.checkpoints import LAST, PREVIOUS, SUMS, DurableCheckpoints, read_checkpoint


def save(folder: Path, step: int) -> Path:
    file = folder / "checkpoints" / LAST
    file.parent.mkdir(exist_ok=True)
    DurableCheckpoints().save_checkpoint(
        {"global_step": step, "state_dict": {"w": torch.full((64,), float(step))}}, file
    )
    return file


def step(file: Path) -> int:
    return read_checkpoint(file)["global_step"]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_the_last_two_are_kept_and_vouched_for(tmp_path: Path) -> None:
    for number in range(4):
        file = save(tmp_path, number)
    assert step(file) == 3 and step(file.with_name(PREVIOUS)) == 2
    assert sorted(path.name for path in file.parent.iterdir()) == sorted([LAST, PREVIOUS, SUMS])
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=file.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines() == [f"{LAST}: OK", f"{PREVIOUS}: OK"]


def test_any_flipped_bit_is_noticed_and_the_one_before_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2)
    for place in range(0, file.stat().st_size, 97):
        flip(file, place)
        with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged .* --resume .*previous\.ckpt") as caught:
            read_checkpoint(file)
        assert "\n" not in str(caught.value)
        flip(file, place)
    assert step(file) == 2


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_something_else_in_its_place(content: bytes, tmp_path: Path) -> None:
    file = save(tmp_path, 1)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged .*; remove .* to train from the start"):
        read_checkpoint(file)
    assert file.read_bytes() == content, "nothing is overwritten"


def test_a_damaged_one_does_not_replace_the_good_one_before(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2)
    flip(file, 200)
    save(tmp_path, 3)
    assert step(file) == 3 and step(file.with_name(PREVIOUS)) == 1


def test_without_checksums_nothing_is_trusted_until_somebody_vouches(tmp_path: Path) -> None:
    file = save(tmp_path, 1)
    (file.parent / SUMS).unlink()
    with pytest.raises(CheckpointError, match="SHA256SUMS is missing") as caught:
        read_checkpoint(file)
    command = str(caught.value).partition("to trust it as it is: ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    assert step(file) == 1


def test_there_is_none_yet(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        read_checkpoint(tmp_path / "checkpoints" / LAST)


class Bomb:
    def __reduce__(self) -> tuple:
        return (print, ("boom",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / LAST
    DurableCheckpoints().save_checkpoint({"state_dict": {}, "extra": Bomb()}, file)
    with pytest.raises(CheckpointError, match="UnpicklingError"):
        read_checkpoint(file)
    assert "boom" not in capsys.readouterr().out


# A process that dies, or a disk that fills, at any of the calls that change a folder


class Dead(BaseException):
    """As good as a kill: no handler of ours runs after it."""


CALLS = [(os, "replace"), (os, "link"), (os, "fsync"), (Path, "unlink")]


def fail_at(number: int, error: type[BaseException] | OSError, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the call of that number, among those that change a folder, fail before it does anything."""
    seen: list[str] = []

    def wrapped(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            if len(seen) - 1 == number:
                raise error
            if len(seen) > number and error is Dead:
                raise Dead  # a dead process does not tidy up either
            return original(*args, **kwargs)

        return call

    for module, name in CALLS:
        patch.setattr(module, name, wrapped(name, getattr(module, name)))
    return seen


@pytest.mark.parametrize("error", [Dead, OSError(errno.ENOSPC, "No space left on device")])
def test_replacing_can_fail_at_every_point(error: Any, tmp_path: Path) -> None:
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        save(folder, 1)
        file = save(folder, 2)
        with pytest.MonkeyPatch.context() as patch:
            seen = fail_at(number, error, patch)
            try:
                save(folder, 3)
                ended = None
            except (Dead, CheckpointError) as stopped:
                ended = stopped
        assert step(file) in (2, 3), f"call {number}: {seen}"
        assert step(file.with_name(PREVIOUS)) in (1, 2)
        if isinstance(ended, CheckpointError):
            assert "No space left on device; the checkpoint before is still there" in str(ended)
        save(folder, 4)
        assert step(file) == 4 and step(file.with_name(PREVIOUS)) in (2, 3)
        assert not list(file.parent.glob("*.tmp-*")), "what was left over is cleared away"
        if ended is None and len(seen) <= number:
            assert number > 5
            break
    else:
        raise AssertionError("it never ended")


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    save(tmp_path, 1)
    file = save(tmp_path, 2)
    assert step(file) == 2 and step(file.with_name(PREVIOUS)) == 1


def test_a_digest_is_not_remembered_for_a_file_that_may_still_change(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    first = durable.file_digest(file)
    state = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert durable.file_digest(file) != first
