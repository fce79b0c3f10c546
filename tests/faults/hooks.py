"""Where a process can be hit: at the n-th time that it does something, counted from outside the code under test."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

Blow = Callable[[], None]


def kill() -> None:
    """What a power cut or the OOM killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def send(*signals: int) -> Blow:
    """Signals to this process, one after the other."""

    def blow() -> None:
        for number in signals:
            os.kill(os.getpid(), number)

    return blow


def at_write(pattern: str, number: int, blow: Blow, after: bool = False) -> Callable[[], None]:
    """When the n-th file whose path matches is about to get its name (or has just got it)."""

    def prepare() -> None:
        original, seen = os.replace, [0]

        def replace(source: Any, target: Any, **kwargs: Any) -> None:
            hit = False
            if fnmatch(str(target), pattern):
                hit, seen[0] = seen[0] == number, seen[0] + 1
            if hit and not after:
                blow()
            original(source, target, **kwargs)
            if hit and after:
                blow()

        os.replace = replace

    return prepare


def at_half_written(pattern: str, number: int, blow: Blow) -> Callable[[], None]:
    """When half the bytes of the n-th file whose path matches have been written."""
    from dinado import durable
    from dinado.rollouts import shard
    from engine import checkpoints

    def prepare() -> None:
        original, seen = durable.write_atomic, [0]

        def write(path: Path, content: Any, refuse: Any) -> None:
            if fnmatch(str(path), pattern):
                seen[0] += 1
                if seen[0] - 1 == number:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.with_name(f"{path.name}.tmp-{os.getpid()}").open("wb") as file:
                        file.write(content[: len(content) // 2])
                        file.flush()
                        blow()
            original(path, content, refuse)

        shard.write_atomic = checkpoints.write_atomic = write

    return prepare


def at_call(owner: Any, name: str, number: int, blow: Blow) -> Callable[[], None]:
    """When a function is called for the n-th time."""

    def prepare() -> None:
        original, seen = getattr(owner, name), [0]

        def call(*args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            if seen[0] - 1 == number:
                blow()
            return original(*args, **kwargs)

        setattr(owner, name, call)

    return prepare


def at_torn_line(number: int, blow: Blow) -> Callable[[], None]:
    """When half of the n-th line of ``metrics.jsonl`` has been written."""
    from workbench.plain_files import json_line
    from workbench.run_folder import RunFolder

    def prepare() -> None:
        original, seen = RunFolder.append_metrics, [0]

        def append(self: RunFolder, record: Any) -> None:
            seen[0] += 1
            if seen[0] - 1 == number:
                line = json_line(record)
                with (self.path / "metrics.jsonl").open("a") as file:
                    file.write(line[: len(line) // 2])
                    file.flush()
                    blow()
            original(self, record)

        RunFolder.append_metrics = append  # type: ignore[method-assign]

    return prepare


def after_seconds(seconds: float, blow: Blow) -> Callable[[], None]:
    """At some moment."""

    def prepare() -> None:
        timer = threading.Timer(seconds, blow)
        timer.daemon = True
        timer.start()

    return prepare
