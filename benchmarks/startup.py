"""Seconds until a run whose rollouts are stored begins to train, until its first step, and until ``--help`` answers.

    python benchmarks/startup.py                                   the demo
    python benchmarks/startup.py commongen_smollm2 method=nado     any experiment and settings

It runs ``train.py`` in its own process, which is stopped once it has logged its first step. A run that is not timed
comes first; it converts the model and samples the rollouts, if they are missing.
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
    """Measure the seconds and print them."""
    options = timing.parser(__doc__)
    options.add_argument("experiment", nargs="?", default="quickstart")
    options.add_argument("settings", nargs="*", help="key=value for the run")
    arguments = options.parse_args()
    words = [arguments.experiment, *arguments.settings]
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    start(words)
    measured = [start(words) | answer() for _ in range(arguments.repeats)]
    seconds = {name: statistics.median(turn[name] for turn in measured) for name in measured[0]}
    timing.show([{"until": name, "seconds": value} for name, value in seconds.items()])
    numbers = {f"{name.strip('-').replace(' ', '_')}_s": value for name, value in seconds.items()}
    return timing.finish(numbers, arguments.json)


def start(words: list[str]) -> dict[str, float]:
    """Start a run and stop it after its first step; return the seconds until it reports training, and until the step.

    Raises:
        SystemExit: the run ended before; the message holds its output.
    """
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryFile("w+") as said:
        command = [*TRAIN, *words, f"runs={runs}", "trainer.log_every=1", "trainer.progress=false"]
        found: dict[str, float] = {}
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        while "first step" not in found:
            if process.poll() is not None:
                said.seek(0)
                raise SystemExit(f"{' '.join(command)} ended before its first step:\n{said.read()}")
            time.sleep(0.02)
            now = time.perf_counter() - started
            if "training" not in found and "parameters for" in os.pread(said.fileno(), 100_000, 0).decode():
                found["training"] = now
            if any('"train/loss"' in file.read_text() for file in Path(runs).glob("*/*/metrics.jsonl")):
                found["first step"] = now
        process.send_signal(signal.SIGKILL)
        process.wait()
    return found


def answer() -> dict[str, float]:
    """Measure the seconds that ``--help`` of the main script takes."""
    started = time.perf_counter()
    subprocess.run([*TRAIN, "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return {"--help": time.perf_counter() - started}


if __name__ == "__main__":
    sys.exit(main())
