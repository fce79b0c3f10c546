"""A trial without a model: what ``train.py`` does to its run folder, in a fraction of the time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from conftest import ROOT

# val/success rises to the learning rate; a rate of 13 fails, and PACE seconds pass with every step.
TRIAL = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from dinado.errors import Stopped
from workbench import cli
from workbench.settings import loader
from workbench.processes import processes
from workbench.run_folder import RunFolder

def stop(number, frame):
    raise Stopped(signal.Signals(number).name)

def main(arguments):
    signal.signal(signal.SIGTERM, stop)
    resume = arguments.value(cli.RESUME)
    if resume:
        loaded, folder = loader.from_run_folder(resume), RunFolder(resume)
    else:
        loaded = loader.load(arguments.positional[0], arguments.overrides)
        folder = RunFolder.create(loaded, arguments.overrides)
    rate, steps = loaded.config.optim.lr, loaded.config.optim.steps
    with folder, processes(1):
        for step in range(len(folder.metrics()), steps):
            time.sleep(float(os.environ.get("PACE", 0)))
            folder.append_metrics({{"step": step, "val/success": rate * (step + 1) / steps}})
            if rate == 13:
                raise RuntimeError("no luck")
    return 0

sys.exit(cli.run(main, "", [cli.RESUME, cli.JSON]))
"""

SWEEP = """
program: train.py
command: ["${env}", "${interpreter}", "${program}", exact_world, "${args}"]
method: grid
metric: {name: val/success, goal: maximize}
"""


class Sweep:
    """``sweep.py`` on such trials, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "trial.py").write_text(TRIAL)
        run = "from workbench import cli; import sweep; sys.exit(cli.run(sweep.main, '', sweep.OPTIONS))"
        trial = f"from workbench.sweeping import driver; driver.TRAIN = {str(folder / 'trial.py')!r}"
        (folder / "sweep.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r}); {trial}; {run}\n")

    def write(self, parameters: str, head: str = SWEEP) -> None:
        """Write the sweep file; ``parameters`` as indented lines."""
        (self.folder / "mine.yaml").write_text(
            f"{head}\nparameters:\n{textwrap.indent(textwrap.dedent(parameters), '  ')}"
        )

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start it; what it prints is one text."""
        return subprocess.Popen(
            [sys.executable, "sweep.py", "mine.yaml", *words],
            cwd=self.folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, **environment: str) -> tuple[int, str]:
        """Run it to the end: its exit code and what it printed."""
        process = self.start(*words, **environment)
        printed, _ = process.communicate(timeout=120)
        return process.returncode, printed

    @property
    def path(self) -> Path:
        """The sweep's record."""
        return self.folder / "runs" / "sweeps" / "mine"

    def starts(self) -> dict[str, list[str]]:
        """Commands that were started, by trial."""
        return {
            log.stem: [line for line in log.read_text().splitlines() if line.startswith("$ ")]
            for log in sorted((self.path / "logs").glob("*.log"))
        }


def alive(folder: Path) -> list[int]:
    """Trials of a folder that still run."""
    found = subprocess.run(["pgrep", "-f", str(folder / "trial.py")], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split() if int(line) != os.getpid()]


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    """What Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    return process.returncode, printed
