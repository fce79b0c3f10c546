"""The norm head's own steps in whole runs: on several processes, resumed, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import process
from conftest import ROOT
from helpers import exact_gpt2_words

from workbench.run_status import status

NORM_FIRST = [
    "method=dinado_merge",
    "objective.norm.kind=mean",
    "objective.oracle.token_ce=0",
    "objective.oracle.value_ce=0.3",
    "objective.oracle.terminal_ce=1",
    "objective.consistency.weight=1",
    "objective.consistency.detach=values",
    "objective.consistency.divergence=poisson",
    "optim.norm_lr=0.01",
]


def fit_ce(run: Path) -> list[float]:
    """What the norm's own steps reported, one number for each time they ran."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["norm/fit_ce"] for line in lines if "norm/fit_ce" in line]


@pytest.mark.slow
def test_two_processes_and_micro_batches_fit_the_same_norm(tmp_path: Path) -> None:
    """For a few steps: Adam makes much of a gradient that is 0 up to rounding."""
    found = {}
    for name, words in {"one": [], "two": ["trainer.devices=2"], "micro": ["optim.micro_batch=4"]}.items():
        given = exact_gpt2_words(tmp_path, *NORM_FIRST, "optim.norm_steps=3", f"runs={tmp_path / name}", *words)
        result = process("train.py", "exact_world", *given, "--json")
        assert result.code == 0, result.err
        (found[name],) = fit_ce(ROOT / result.json["run_dir"])
    assert found["two"] == pytest.approx(found["one"], rel=1e-5)
    assert found["micro"] == pytest.approx(found["one"], rel=1e-5)


@pytest.mark.slow
def test_interrupted_while_the_norm_learns_and_resumed(tmp_path: Path) -> None:
    words = exact_gpt2_words(tmp_path, *NORM_FIRST, "optim.norm_steps=100000")
    command = [sys.executable, str(ROOT / "train.py"), "exact_world", *words]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        deadline = time.monotonic() + 200
        while (
            not (logs := list(tmp_path.glob("runs/*/*/metrics.jsonl"))) or "rollouts/success" not in logs[0].read_text()
        ):
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(2)
        run = logs[0].parent
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=200)
    finally:
        running.kill()
    assert running.returncode == 130 and "Traceback" not in err, err
    assert status(run).startswith("interrupted") and f"python train.py --resume {run}" in err
    assert fit_ce(run) == []
    # Without a checkpoint it starts over, the norm's steps included; with one they are not repeated.
    assert process("train.py", "--resume", str(run), "optim.norm_steps=3", "--json").code == 0
    assert len(fit_ce(run)) == 1
    assert process("train.py", "--resume", str(run), "optim.norm_steps=3", "optim.steps=8", "--json").code == 0
    assert len(fit_ce(run)) == 1 and status(run) == "finished"
