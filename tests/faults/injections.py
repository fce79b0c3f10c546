"""Faults by kind. Each says how a run is hit and what has to be seen on the way; all then have to end alike.

A fault is given a folder in which a run can be started. It starts one, hits it, checks what was said, mends what only a
person can mend, and leaves a run that ``--resume`` finishes.

Longer than 300 lines because it is about one thing: one list of everything that is done to a run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import case
import hooks
from case import RUN, Ended

TOLD_TO_STOP = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGUSR1: 75}


class Fault(NamedTuple):
    """One way to hit a run.

    Attributes:
        kind: what sort of fault it is; the table has a line for each.
        name: which of its kind.
        inject: does it in a folder.
        damaged: shards that it spoils itself, as a pattern; all others have to outlive it.
        processes: of the run, which has to end as an undisturbed one of as many.
        to_rounding: what is made again is made in another way, and equal to rounding.
    """

    kind: str
    name: str
    inject: Callable[[Path], None]
    damaged: str = ""
    processes: int = 1
    to_rounding: bool = False


def kills() -> Iterator[Fault]:
    """SIGKILL at a chosen place."""
    texts = "*/round-000/block-*.arrow"
    places = {
        "killed before a shard has its name": (hooks.at_write, texts, range(3)),
        "killed after a shard has its name": (lambda p, n, b: hooks.at_write(p, n, b, after=True), texts, range(3)),
        "killed between checksum and shard": (
            lambda p, n, b: hooks.at_write(p, n, b, after=True),
            "*/round-000/block-*.sha256",
            range(3),
        ),
        "killed while a shard is written": (hooks.at_half_written, "*.arrow", range(0, 60, 5)),
        "killed while judging": (hooks.at_write, "*/scores-*/block-*.arrow", range(0, 10, 2)),
        "killed while looking ahead": (hooks.at_write, "*/lookahead-*/block-*.arrow", range(0, 8, 2)),
        "killed while keeping states": (hooks.at_half_written, "*/states-*/*", range(0, 10, 2)),
        "killed in a later round": (hooks.at_write, "*/round-00[12]/block-*.arrow", range(8)),
        "killed while weighing": (hooks.at_write, "*/density-*/block-*.arrow", range(0, 16, 2)),
        "killed while a round's model is kept": (hooks.at_half_written, "*/model.safetensors", range(2)),
        "killed while a checkpoint is written": (hooks.at_half_written, "*/last.ckpt", range(6)),
        "killed while checkpoints are exchanged": (hooks.at_write, "*/checkpoints/*", range(0, 24, 2)),
    }
    for kind, (place, pattern, numbers) in places.items():
        for number in numbers:
            yield Fault(kind, f"{pattern} {number}", _hit(place(pattern, number, hooks.kill), -signal.SIGKILL))


def kills_between_files() -> Iterator[Fault]:
    """SIGKILL in training and evaluation, in a line of numbers, at any moment, and again and again."""
    from engine import session
    from engine.evaluation import evaluate_method  # noqa: F401  what the hook below replaces
    from lightning_modules.callbacks.graceful_stop import GracefulStop

    for number in range(9):
        hook = hooks.at_call(GracefulStop, "on_train_batch_end", number, hooks.kill)
        yield Fault("killed in an optimiser step", f"step {number}", _hit(hook, -signal.SIGKILL))
    for number in range(0, 12, 2):
        hook = hooks.at_torn_line(number, hooks.kill)
        yield Fault("killed in a line of metrics.jsonl", f"line {number}", _hit(hook, -signal.SIGKILL))
    for owner, name in ((session, "evaluate_method"), (session, "final_metrics"), (session, "show_results")):
        yield Fault("killed while evaluating", name, _hit(hooks.at_call(owner, name, 0, hooks.kill), -signal.SIGKILL))
    moments = random.Random(0)
    for number in range(36):
        hook = hooks.after_seconds(moments.uniform(0.2, 3.0), hooks.kill)
        yield Fault("killed at any moment", f"{number}", _hit(hook, -signal.SIGKILL, 0))
    for number in range(4):
        yield Fault("killed three times", f"{number}", _hit_again_and_again(moments.random()))


def signals() -> Iterator[Fault]:
    """What a person or a scheduler sends."""
    from datamodules.fill_stores import StoreFiller
    from lightning_modules.callbacks.graceful_stop import GracefulStop

    for sent, code in TOLD_TO_STOP.items():
        name = signal.Signals(sent).name
        for number in (0, 2, 5):
            hook = hooks.at_call(GracefulStop, "on_train_batch_end", number, hooks.send(sent))
            yield Fault(f"{name} while training", f"step {number}", _hit(hook, code))
        hook = hooks.at_call(StoreFiller, "fill_states", 0, hooks.send(sent))
        yield Fault(f"{name} while sampling", "after the first store", _hit(hook, code))
    twice = hooks.send(signal.SIGINT, signal.SIGINT)
    for number in (1, 4, 7):
        hook = hooks.at_call(GracefulStop, "on_train_batch_end", number, twice)
        yield Fault("Ctrl-C twice", f"step {number}", _hit(hook, 130))


def damages() -> Iterator[Fault]:
    """Files that were whole once."""
    spoils: dict[str, Callable[[Path], None]] = {
        "cut short": lambda file: os.truncate(file, file.stat().st_size // 2),
        "with a bit flipped": flip,
        "emptied": lambda file: os.truncate(file, 0),
        "gone": Path.unlink,
    }
    parts = ("round-000/block-*", "round-000/scores-*/*", "round-000/lookahead-*/*", "round-001/block-*")
    for spoilt, spoil in spoils.items():
        for part in (*parts, "round-000/states-*/*", "round-001/density-*/*"):
            pattern = f"cache/rollouts/*/{part}.arrow"
            states = "states" in part  # of texts that are there already they take a pass of their own
            yield Fault(f"a shard {spoilt}", part, _spoil(pattern, spoil), damaged=pattern, to_rounding=states)
        for part in parts[:2]:
            pattern = f"cache/rollouts/*/{part}.arrow"
            inject = _spoil(f"{pattern}.sha256", spoil)
            yield Fault(f"a checksum {spoilt}", part, inject, damaged=pattern)
    for spoilt in ("cut short", "with a bit flipped", "emptied"):
        for step in (4, 6, 9):
            inject = _spoil_checkpoint(step, spoils[spoilt])
            yield Fault(f"last.ckpt {spoilt}", f"at step {step}", inject)
    for step in (4, 9):
        yield Fault("checksums of checkpoints gone", f"at step {step}", _unvouched(step))
    for what, content in (("STATUS", b"\xff\x00"), ("metrics.jsonl", b'{"step": 3, "train/lo\n\xff\xfe\n')):
        yield Fault("junk in the run folder", what, _junk(what, content))


def disks() -> Iterator[Fault]:
    """Disks that are really full, or really read-only. Needs the right to mount."""
    for size in (60, 120, 200, 300, 420, 560, 700, 900, 1100, 1300):
        yield Fault("a full disk", f"{size} kB", _full(size))
    from lightning_modules.callbacks.graceful_stop import GracefulStop

    for number in (1, 3, 5, 8):
        yield Fault("a disk that turns read-only", f"step {number}", _read_only(GracefulStop, number))


def processes() -> Iterator[Fault]:
    """One of two processes is killed, at any moment."""
    moments = random.Random(1)
    for victim in ("second", "first"):
        for number in range(3):
            inject = _kill_one_of_two(victim == "second", moments.uniform(6.0, 12.0))
            yield Fault(f"the {victim} of two processes killed", f"{number}", inject, processes=2)


def everything() -> list[Fault]:
    """All faults; those that need a right this user lacks are left out, see :func:`can_mount`."""
    found = [*kills(), *kills_between_files(), *signals(), *damages(), *processes()]
    return found + (list(disks()) if can_mount() else [])


def few(faults: list[Fault]) -> list[Fault]:
    """One of every second kind, from the middle of its list: the first is often where nothing has been done yet."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    slow = ("processes killed", "killed at any moment", "three times")
    return [same[len(same) // 2] for kind, same in by_kind.items() if not kind.endswith(slow)][::2]


def can_mount() -> bool:
    """Whether a disk can be made here that is full after a few writes."""
    if os.geteuid():
        return False
    probe = Path(f"/tmp/dinado-mount-{os.getpid()}")
    probe.mkdir(exist_ok=True)
    try:
        if _mount(probe, "size=64k").returncode:
            return False
        return not _umount(probe).returncode
    finally:
        probe.rmdir()


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


# How a run is hit


def _hit(prepare: Callable[[], None], *codes: int) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        ended = case.forked(folder, case.words(), prepare)
        _expect(ended, *codes)
        if ended.code > 0:
            assert f"--resume {RUN}" in ended.out + ended.err, f"no hint how to go on: {ended}"

    return inject


def _hit_again_and_again(seed: float) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        moments = random.Random(seed)
        arguments = case.words()
        for _ in range(3):
            _expect(case.forked(folder, arguments, hooks.after_seconds(moments.uniform(1.0, 3.0), hooks.kill)), -9, 0)
            arguments = case.words(resume=RUN) if (folder / RUN / "config.yaml").exists() else case.words()

    return inject


def _stop_at(folder: Path, step: int) -> None:
    from lightning_modules.callbacks.graceful_stop import GracefulStop

    hook = hooks.at_call(GracefulStop, "on_train_batch_end", step - 1, hooks.send(signal.SIGTERM))
    _expect(case.forked(folder, case.words(), hook), TOLD_TO_STOP[signal.SIGTERM])


def _spoil(pattern: str, spoil: Callable[[Path], None]) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        _stop_at(folder, 5)
        files = sorted(folder.glob(pattern))
        assert files, f"there is no {pattern}"
        spoil(files[len(files) // 2])

    return inject


def _spoil_checkpoint(step: int, spoil: Callable[[Path], None]) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        if step == 9:
            _expect(case.forked(folder, case.words()), 0)
        else:
            _stop_at(folder, step)
        last = folder / RUN / "checkpoints" / "last.ckpt"
        spoil(last)
        before = last.read_bytes()
        refused = case.forked(folder, case.words(resume=RUN))
        _expect_line(refused, "is damaged")
        assert last.read_bytes() == before, "a damaged checkpoint was overwritten"
        way_out = refused.err.split("--resume ")[1].strip()
        # Going on from there for a step makes a last.ckpt that is whole again.
        _expect(case.forked(folder, ["--resume", way_out]), 0)

    return inject


def _unvouched(step: int) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        _stop_at(folder, step)
        (folder / RUN / "checkpoints" / "SHA256SUMS").unlink()
        refused = case.forked(folder, case.words(resume=RUN))
        _expect_line(refused, "SHA256SUMS is missing")
        subprocess.run(["sh", "-c", refused.err.partition("as it is: ")[2]], cwd=folder, check=True)

    return inject


def _junk(name: str, content: bytes) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        _stop_at(folder, 5)
        with (folder / RUN / name).open("ab" if name.endswith("l") else "wb") as file:
            file.write(content)

    return inject


def _full(kilobytes: int) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        parts = (folder / "model").resolve().parent
        assert not _mount(folder, f"size={kilobytes}k").returncode
        try:
            case.link(parts, folder)
            ended = case.forked(folder, case.words(), said=folder.parent)
            if ended.code:
                _expect_line(ended, "No space left on device")
            _mount(folder, "remount,size=64m")
            if not (folder / RUN / "config.yaml").exists():
                _expect(case.forked(folder, case.words()), 0)
            _copy_out(folder)
        finally:
            _umount(folder)
        _put_back(folder)

    return inject


def _read_only(owner: type, number: int) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        parts = (folder / "model").resolve().parent
        assert not _mount(folder, "size=64m").returncode
        try:
            case.link(parts, folder)
            hook = hooks.at_call(owner, "on_train_batch_end", number, lambda: _must(_mount(folder, "remount,ro")))
            ended = case.forked(folder, case.words(), hook, said=folder.parent)
            _expect_line(ended, "Read-only file system")
            _mount(folder, "remount,rw")
            _copy_out(folder)
        finally:
            _umount(folder)
        _put_back(folder)

    return inject


def _kill_one_of_two(second: bool, seconds: float) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        running = case.started(folder, case.words("trainer.devices=2"))
        time.sleep(seconds)
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(running.pid)], capture_output=True, text=True)
        others = [int(word) for word in found.stdout.split()]
        if second and others:
            os.kill(others[0], signal.SIGKILL)
        elif not second:
            running.kill()
        out, err = running.communicate(timeout=case.LIMIT_SECONDS)
        _expect(Ended(running.returncode, out, err), 0, *((1,) if second else (-9,)))

    return inject


def _expect(ended: Ended, *codes: int) -> None:
    assert ended.code in codes, f"ended with {ended.code}, not {codes}: {ended.err[-600:]}"


def _expect_line(ended: Ended, words: str) -> None:
    """One line on stderr, exit code 2."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    assert ended.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), f"{ended.code}: {ended.err[-800:]}"
    assert words in lines[0], lines[0]


def _mount(folder: Path, options: str) -> subprocess.CompletedProcess[str]:
    command = ["mount", "-t", "tmpfs", "-o", options, "dinado-test", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _umount(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["umount", str(folder)], capture_output=True, text=True, check=False)


def _must(done: subprocess.CompletedProcess[str]) -> None:
    assert not done.returncode, done.stderr


def _copy_out(folder: Path) -> None:
    subprocess.run(["cp", "-a", f"{folder}/.", f"{folder}.kept"], check=True)


def _put_back(folder: Path) -> None:
    for name in ("cache", "runs"):
        if (Path(f"{folder}.kept") / name).exists():
            subprocess.run(["cp", "-a", f"{folder}.kept/{name}", str(folder)], check=True)
