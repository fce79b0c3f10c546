"""The scripts of experiments/launch, as far as one machine can tell: real processes, and a SLURM that is played."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Result
from conftest import ROOT
from helpers import exact_gpt2_words, load_checkpoint

import train
from workbench.run_folder import RunFolder
from workbench.run_status import status

pytestmark = pytest.mark.ddp

LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = sorted(file for file in LAUNCH.iterdir() if file.suffix in (".sh", ".sbatch"))

SRUN = """#!{python}
# A job step on this machine: every task with its variables, signals to all of them, the largest exit code.
import os, signal, subprocess, sys
assert sys.argv[1] == "--kill-on-bad-exit=1"
words, tasks = sys.argv[2:], []
signal.signal(signal.SIGUSR1, lambda number, frame: [task.send_signal(number) for task in tasks])
for rank in range(int(os.environ["SLURM_NTASKS"])):
    own = {{"SLURM_PROCID": rank, "SLURM_NODEID": rank, "SLURM_LOCALID": 0, "SLURM_STEP_ID": 0}}
    tasks.append(subprocess.Popen(words, env=os.environ | {{k: str(v) for k, v in own.items()}}))
open("{folder}/srun.pid", "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/scontrol
"""
PYTHON = """#!/bin/sh
# Says what it was asked for and ends as it is told.
printf '%s\\n' "$@" > {folder}/asked
exit $(cat {folder}/code)
"""
WANDB = """#!/bin/bash
echo "$@" > {folder}/agent
trap 'echo saved >> {folder}/agent; exit 3' TERM
sleep 60 &
wait
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which srun, scontrol and wandb are ours, and a batch script has been started."""
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON, "wandb": WANDB}.items():
        file = tmp_path / "bin" / name
        file.write_text(text.format(python=sys.executable, folder=tmp_path))
        file.chmod(0o755)
    variables = {
        "JOB_ID": "4711",
        "JOB_NAME": "dinado",
        "JOB_NUM_NODES": "1",
        "NNODES": "1",
        "NTASKS": "1",
        "NTASKS_PER_NODE": "1",
        "NODELIST": "127.0.0.1",
        "PROCID": "0",
    }
    own = {f"SLURM_{name}": value for name, value in variables.items()}
    return os.environ | own | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "MASTER_PORT": str(free_port())}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def submit(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(LAUNCH / script), *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )


def wait_for_training(running: list[subprocess.Popen], folder: Path) -> Path:
    """The run, once it has logged a step."""
    deadline = time.monotonic() + 200
    while not (logs := list(folder.glob("runs/*/*/metrics.jsonl"))) or "train/loss" not in logs[0].read_text():
        assert all(process.poll() is None for process in running), [process.communicate() for process in running]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return logs[0].parent


def same_as_alone(run: Path, folder: Path, words: list[str], command: Callable[..., Result]) -> None:
    """Whether a run has the weights that one process comes to with as many micro-batches, every step logged once."""
    alone = command(train, "exact_world", *words, f"runs={folder}/alone", "optim.micro_batch=8", "--json")
    assert alone.code == 0, alone.err
    expected = load_checkpoint(Path(alone.json["run_dir"]))["state_dict"]
    for name, value in load_checkpoint(run)["state_dict"].items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4, msg=name)
    records = RunFolder(run).metrics()
    steps = [record["step"] for record in records[:-1] if "train/loss" in record]
    assert steps == list(range(STEPS)) and status(run) == "finished"


STEPS = 60
WORDS = ("method=nado", "network.width=16", "network.heads=2", "eval.best_of=0", f"optim.steps={STEPS}")


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda file: file.name)
def test_scripts_are_sound(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck (Debian: apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


# torchrun


@pytest.mark.slow
def test_two_machines_stop_and_go_on_together(tmp_path: Path, command: Callable[..., Result]) -> None:
    """Two agents of torchrun on this one: told to stop, they save; started again, they end where one process does."""
    words = exact_gpt2_words(tmp_path, *WORDS)
    port = str(free_port())

    def agents() -> list[subprocess.Popen]:
        environment = {"PYTHON": sys.executable, "NAME": "first", "NODES": "2", "HEAD": "localhost", "PORT": port}
        command = [str(LAUNCH / "torchrun.sh"), "exact_world", *words]
        return [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment | {"GPUS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]

    running = agents()
    run = wait_for_training(running, tmp_path)
    for agent in running:
        agent.send_signal(signal.SIGTERM)
    said = [agent.communicate(timeout=200) for agent in running]
    assert [agent.returncode for agent in running] == [1, 1], said
    assert status(run) == "interrupted: SIGTERM", said
    assert 0 < load_checkpoint(run)["global_step"] < STEPS
    running = agents()
    said = [agent.communicate(timeout=200) for agent in running]
    assert [agent.returncode for agent in running] == [0, 0], said
    same_as_alone(run, tmp_path, words, command)


@pytest.mark.parametrize(
    ("environment", "words", "said"),
    [
        ({}, ["quickstart"], "name the run: NAME=first"),
        ({"NAME": "x"}, [], "name an experiment"),
        ({"NAME": "x", "NODES": "2"}, ["quickstart"], "HEAD=host0, the same on all of them"),
    ],
)
def test_torchrun_with_something_missing(environment: dict[str, str], words: list[str], said: str) -> None:
    done = submit("torchrun.sh", *words, **{"PATH": os.environ["PATH"]} | environment)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and said in line


def test_torchrun_says_the_same_to_every_machine(tmp_path: Path, cluster: dict[str, str]) -> None:
    (tmp_path / "code").write_text("0")
    environment = {"NAME": "x", "NODES": "3", "HEAD": "host0", "GPUS": "8"}
    assert submit("torchrun.sh", "quickstart", "seed=1", **cluster | environment).returncode == 0
    asked = " ".join((tmp_path / "asked").read_text().splitlines())
    assert "--nnodes 3 --nproc-per-node 8" in asked and "--rdzv-endpoint host0:29500 --rdzv-id x" in asked
    assert asked.endswith("train.py quickstart seed=1 trainer.devices=8 trainer.num_nodes=3 --continue")


# SLURM


@pytest.mark.slow
def test_a_job_of_two_tasks_is_warned_and_queued_again(
    tmp_path: Path, cluster: dict[str, str], command: Callable[..., Result]
) -> None:
    words = exact_gpt2_words(tmp_path, *WORDS)
    cluster |= {"SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "PYTHON": sys.executable}
    batch = subprocess.Popen(
        [str(LAUNCH / "slurm.sbatch"), "exact_world", *words],
        cwd=ROOT,
        env=cluster,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = wait_for_training([batch], tmp_path)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
    said = batch.communicate(timeout=200)
    assert batch.returncode == 75 and status(run) == "interrupted: SIGUSR1", said
    assert (tmp_path / "scontrol").read_text() == "requeue 4711\n"
    assert run.name.startswith("slurm4711-") and 0 < load_checkpoint(run)["global_step"] < STEPS
    done = submit("slurm.sbatch", "exact_world", *words, **cluster | {"SLURM_RESTART_COUNT": "1"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scontrol").read_text() == "requeue 4711\n"
    same_as_alone(run, tmp_path, words, command)


@pytest.mark.parametrize(
    ("code", "environment", "ends_with", "requeued"),
    [
        (0, {}, 0, False),
        (2, {}, 2, False),
        (1, {}, 1, False),
        (130, {}, 130, False),
        (75, {}, 75, True),
        (75, {"SLURM_RESTART_COUNT": "99"}, 75, True),
        (75, {"SLURM_RESTART_COUNT": "100"}, 2, False),
    ],
)
def test_when_a_job_is_queued_again(
    code: int, environment: dict[str, str], ends_with: int, requeued: bool, tmp_path: Path, cluster: dict[str, str]
) -> None:
    (tmp_path / "code").write_text(str(code))
    done = submit("slurm.sbatch", "quickstart", **cluster | environment)
    assert (done.returncode, (tmp_path / "scontrol").exists()) == (ends_with, requeued), done.stderr


def test_an_array_fills_in_its_number(tmp_path: Path, cluster: dict[str, str]) -> None:
    (tmp_path / "code").write_text("0")
    array = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS_PER_NODE": "4"}
    assert submit("slurm.sbatch", "quickstart", "seed=%a", "logging.name=a b", **cluster | array).returncode == 0
    expected = "train.py|quickstart|seed=3|logging.name=a b|trainer.devices=4|trainer.num_nodes=1|--continue"
    assert (tmp_path / "asked").read_text().splitlines() == expected.split("|")
    done = submit("slurm.sbatch", "quickstart", **cluster | array)
    assert done.returncode == 2 and "would train the same run" in done.stderr


# W&B


def test_an_agent_hears_that_its_time_is_over(tmp_path: Path, cluster: dict[str, str]) -> None:
    batch = subprocess.Popen([str(LAUNCH / "wandb.sbatch"), "me/dinado/abc"], cwd=ROOT, env=cluster | {"COUNT": "2"})
    deadline = time.monotonic() + 60
    while not (tmp_path / "agent").exists():
        assert time.monotonic() < deadline and batch.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)  # the agent and the script set their traps
    batch.terminate()
    assert batch.wait(30) == 3, "the agent's own code"
    assert (tmp_path / "agent").read_text() == "agent --forward-signals --count 2 me/dinado/abc\nsaved\n"


def test_headers_are_those_that_the_scripts_count_on() -> None:
    """Lightning needs --ntasks-per-node, and a signal that reaches tasks must not be for the batch script alone."""
    header = [line for line in (LAUNCH / "slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--signal=USR1@300", "--ntasks-per-node=1"} <= {line.split()[1] for line in header}
    assert "#SBATCH --signal=B:TERM@300" in (LAUNCH / "wandb.sbatch").read_text()
    for script in SCRIPTS:
        lines = script.read_text().splitlines()
        last_header = max((i for i, line in enumerate(lines) if line.startswith("#SBATCH")), default=0)
        assert all(line.startswith("#") for line in lines[:last_header]), "sbatch stops reading at the first command"
