"""Seconds until the first optimiser step of a run whose rollouts are stored, and until ``--help`` has answered.

    python benchmarks/startup.py                                   the demo
    python benchmarks/startup.py commongen_smollm2 method=nado     any experiment and settings

Runs ``train.py`` in a process of its own, which is stopped once it has logged its first step. A run before the first
that is timed converts the model and samples the rollouts, if they are not there.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, "train.py"]


def main() -> int:
    """Measure and print."""
    options = timing.parser(__doc__)
    options.add_argument("experiment", nargs="?", default="quickstart")
    options.add_argument("settings", nargs="*", help="key=value for the run")
    arguments = options.parse_args()
    words = [arguments.experiment, *arguments.settings]
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    until_first_step(words)
    seconds = timing.alternate({"first step": lambda: until_first_step(words), "--help": answer}, arguments.repeats)
    numbers = {f"{name.strip('-').replace(' ', '_')}_s": statistics.median(took) for name, took in seconds.items()}
    timing.show([{"until": name, "seconds": statistics.median(took)} for name, took in seconds.items()])
    return timing.finish(numbers, arguments.json)


def until_first_step(words: list[str]) -> None:
    """Starts a run and stops it after its first step.

    Raises:
        SystemExit: it ended before, with what it said.
    """
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryFile("w+") as said:
        command = [*TRAIN, *words, f"runs={runs}", "trainer.log_every=1", "trainer.progress=false"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        while not any('"train/loss"' in file.read_text() for file in Path(runs).glob("*/*/metrics.jsonl")):
            if process.poll() is not None:
                said.seek(0)
                raise SystemExit(f"{' '.join(command)} ended before its first step:\n{said.read()}")
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()


def answer() -> None:
    """The help of the main script."""
    subprocess.run([*TRAIN, "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    sys.exit(main())
