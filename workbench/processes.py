"""The launcher for the processes of a run on one machine: starts them without torchrun or srun, ends them together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dinado.errors import ProcessError, Stopped
from dinado.ranks import is_launched
from workbench.launching import LAST_WORDS

PARENT = "DINADO_PARENT"
GRACE_SECONDS = 30.0
"""Seconds that a process may take to end after success, or to notice that another one has failed."""
SHORT_SECONDS = 2.0
"""Seconds that a process may take to end after a failure."""
STOPPED = (Stopped.exit_code, 130)
"""Exit codes of processes that were asked to stop."""


@contextmanager
def processes(count: int) -> Iterator[None]:
    """Run the block in ``count`` processes: this one, and others that are started with the same command.

    Nothing is started under a launcher, or for a count of 1. The processes end together: when another one fails, this
    one is interrupted at once; when this one is gone, for whatever reason, the others end themselves.

    Raises:
        ProcessError: in the first process, with the error message of another one that failed.
    """
    if PARENT in os.environ:
        threading.Thread(target=_end_with, args=[int(os.environ[PARENT])], daemon=True).start()
    if count < 2 or is_launched():
        yield
        return
    before = dict(os.environ)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "NODE_RANK": "0",
    }
    with tempfile.TemporaryDirectory(prefix="dinado-") as folder:
        others = [_Other(rank, Path(folder) / str(rank)) for rank in range(1, count)]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
        patience = SHORT_SECONDS
        try:
            with _interrupted_by(others):
                yield
            patience = GRACE_SECONDS
        finally:
            for other in others:
                other.end(patience)
            os.environ.clear()
            os.environ.update(before)


class _Other:
    """A process of this run other than the first, started with the same command."""

    def __init__(self, rank: int, last_words: Path) -> None:
        self.rank = rank
        self._last_words = last_words
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            PARENT: str(os.getpid()),
            LAST_WORDS: str(last_words),
        }
        main = sys.modules["__main__"].__spec__
        script = [os.path.abspath(sys.argv[0])] if main is None else ["-m", main.name]
        self._process = subprocess.Popen([sys.executable, *script, *sys.argv[1:]], env=environment)

    def error(self) -> ProcessError | None:
        """Return its error, None if it is alive, has ended well or was asked to stop."""
        code = self._process.poll()
        if code in (None, 0, *STOPPED):
            return None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        said = self._last_words.read_text(encoding="utf-8") if self._last_words.is_file() else ""
        *trace, line = said.splitlines() or [f"it {how}"]
        print("\n".join(trace), end="\n" if trace else "", file=sys.stderr)
        return ProcessError(line if code == 2 else f"process {self.rank}: {line}", exit_code=code if code > 0 else 1)

    def wait(self, seconds: float) -> bool:
        """Wait for its end, and tell whether it came in time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self, seconds: float) -> None:
        """Wait for its end and kill it after the timeout; its files are intact either way."""
        if not self.wait(seconds):
            self._process.kill()
            self._process.wait()


@contextmanager
def _interrupted_by(others: list[_Other]) -> Iterator[None]:
    """Raise the error of another process that fails, in the block or from the exception that the block raises."""
    died: list[ProcessError] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            died.extend(error for other in others if (error := other.error()) is not None)
            if died:
                os.kill(os.getpid(), signal.SIGUSR2)
                # The signal's handler does not run while a collective inside a library waits for the other processes.
                if not over.wait(GRACE_SECONDS):
                    print(f"error: {died[0]}", file=sys.stderr, flush=True)
                    os._exit(1)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise died[0]

    previous = signal.signal(signal.SIGUSR2, interrupt)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except ProcessError:
        raise
    except Exception as error:
        # A collective whose peer is gone raises an error that does not name the peer's own error.
        for other in others:
            if other.wait(SHORT_SECONDS) and (reason := other.error()) is not None:
                raise reason from error
        raise
    finally:
        over.set()
        signal.signal(signal.SIGUSR2, previous)


def _end_with(parent: int) -> None:
    """End this process once its parent process is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
