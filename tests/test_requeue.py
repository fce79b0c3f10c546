"""A job that is started again goes on with its run: ``--continue``."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Result
from helpers import exact_gpt2_words, load_checkpoint

import train
from dinado.errors import CheckpointError, ConfigError
from dinado.ranks import local_rank
from lightning_modules.callbacks.graceful_stop import GracefulStop
from workbench.launching import check_place
from workbench.run_folder import RunFolder
from workbench.run_ids import choose_run_id
from workbench.run_status import status
from workbench.settings import loader

Command = Callable[..., Result]

JOB_VARIABLES = (
    "SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT SLURM_NTASKS SLURM_NTASKS_PER_NODE SLURM_STEP_ID "
    "SLURM_LOCALID SLURM_NODEID SLURM_NNODES SLURM_JOB_NAME"
)


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in JOB_VARIABLES.split():
        monkeypatch.delenv(name, raising=False)


def kill_at(step: int, number: int, patch: pytest.MonkeyPatch) -> None:
    """Send this process a signal before optimiser step ``step`` ends."""
    original = GracefulStop.on_train_batch_end

    def interrupted(self: GracefulStop, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step and self.received is None:
            os.kill(os.getpid(), number)
        original(self, trainer, *args)

    patch.setattr(GracefulStop, "on_train_batch_end", interrupted)


def by_srun(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the only task of a job."""
    for name, value in {
        "JOB_ID": job,
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
        "NTASKS": "1",
        "NTASKS_PER_NODE": "1",
        "NNODES": "1",
        "STEP_ID": "0",
        "JOB_NAME": "dinado",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def words_of(folder: Path, *more: str) -> list[str]:
    return exact_gpt2_words(folder, "method=nado", "network.width=16", "network.heads=2", "eval.best_of=0", *more)


def test_a_job_that_is_queued_again_goes_on(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """75, the same command, the weights of a run that nobody stopped; Lightning requeues nothing by itself."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = [*words_of(tmp_path), "--continue", "--json"]
    by_srun("11", monkeypatch)
    straight = command(train, "exact_world", *words)
    by_srun("12", monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(3, signal.SIGUSR1, patch)
        stopped = command(train, "exact_world", *words)
    assert (straight.code, stopped.code) == (0, 75), stopped.err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = command(train, "exact_world", *words)
    assert again.code == 0
    runs = [Path(result.json["run_dir"]) for result in (straight, again)]
    assert runs[0] != runs[1] and [run.name.partition("-")[0] for run in runs] == ["slurm11", "slurm12"]
    expected = load_checkpoint(runs[0])["state_dict"]
    for name, value in load_checkpoint(runs[1])["state_dict"].items():
        assert torch.equal(value, expected[name]), name
    steps = [record["step"] for record in RunFolder(runs[1]).metrics()[:-1] if "train/loss" in record]
    assert steps == list(range(6))
    assert not (tmp_path / "asked").exists()
    # Once more, after the end.
    before = (runs[1] / "metrics.jsonl").read_bytes()
    finished = command(train, "exact_world", *words)
    assert finished.code == 0 and f"run {runs[1]} is finished" in finished.err
    numbers = {key: value for key, value in again.json.items() if value is not None}
    assert {key: finished.json[key] for key in numbers} == numbers
    assert (runs[1] / "metrics.jsonl").read_bytes() == before and len(list(runs[0].parent.iterdir())) == 2
    assert command(train, "exact_world", *words[:-1]).out == f"run {runs[1]} is finished\n"


def test_a_start_that_came_to_no_checkpoint(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    words = [*words_of(tmp_path, "trainer.checkpoint_every=100"), "--continue"]

    class Crash(BaseException):
        """As good as a kill."""

    def crash(self: GracefulStop, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            raise Crash

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(GracefulStop, "on_train_batch_end", crash)
        command(train, "exact_world", *words)
    run = tmp_path / "runs" / "exact_world" / "abc"
    assert not (run / "checkpoints" / "last.ckpt").exists() and RunFolder(run).metrics()
    # What a W&B agent types.
    assert command(train, "exact_world", *(f"--{word.removeprefix('--')}" for word in words)).code == 0
    steps = [record["step"] for record in RunFolder(run).metrics()[:-1] if "train/loss" in record]
    assert steps == list(range(6)) and status(run) == "finished"


def test_other_settings_are_refused_by_name(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    words = words_of(tmp_path)
    run = RunFolder.create(loader.load("exact_world", words), words)
    before = {file: file.read_bytes() for file in run.path.iterdir()}
    line = command(train, "exact_world", *words, "optim.lr=0.5", "--continue").error
    assert "command line: optim.lr=0.5: run" in line and "was started with 0.003" in line
    assert f"--resume {run.path} optim.lr=0.5" in line
    assert {file: file.read_bytes() for file in run.path.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["exact_world", "--continue"], "--continue finds a run by its job and there is none"),
        (["--resume", "runs/x", "--continue"], "give one of them"),
        (["exact_world", "--continue=yes"], "--continue takes no value"),
    ],
)
def test_what_cannot_be_continued(command: Command, words: list[str], said: str) -> None:
    assert said in command(train, *words).error


# Names


def test_tasks_of_an_array_have_runs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {}
    for task, job in (("0", "70"), ("1", "71")):
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        monkeypatch.setenv("SLURM_JOB_ID", job)
        ids[task] = choose_run_id(["quickstart"])
    assert [name.partition("-")[0] for name in ids.values()] == ["slurm70_0", "slurm70_1"]


def test_every_machine_comes_to_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the first process alone writes or complains."""
    words = words_of(tmp_path)
    loaded = loader.load("exact_world", words)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    monkeypatch.setenv("RANK", "1")
    other = RunFolder.of_job(loaded, words)
    assert not other.path.exists()
    monkeypatch.setenv("RANK", "0")
    assert RunFolder.of_job(loaded, words).path == other.path and other.path.exists()
    changed = loader.load("exact_world", words)
    changed.config.seed = 1
    with pytest.raises(ConfigError, match="seed=1"):
        RunFolder.of_job(changed, words)
    monkeypatch.setenv("RANK", "1")
    assert RunFolder.of_job(changed, words).path == other.path


def test_machines_without_a_common_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    check_place(2, 1)
    with pytest.raises(ConfigError, match="--rdzv-id NAME on each"):
        check_place(1, 2)
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    check_place(1, 2)


def test_a_machine_that_died_does_not_keep_its_job_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM starts a job again once nothing of it is left; of any other name that cannot be known."""
    words = words_of(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    folder = RunFolder.create(loader.load("exact_world", words), words)
    folder.mark("running")
    state, owner = (folder.path / "STATUS").read_text().splitlines()
    gone = json.loads(owner) | {"host": "other", "pid": 3}
    (folder.path / "STATUS").write_text(f"{state}\n{json.dumps(gone)}\n")
    with pytest.raises(CheckpointError, match=r"still running, process 3 on other; if that machine is gone, delete"):
        folder.__enter__()
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_RESTART_COUNT", "1")
        with folder:
            assert status(folder.path) == "running"
    assert status(folder.path) == "finished"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "3"}, 3),
        ({"SLURM_PROCID": "9", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "1"}, 1),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "1"}, 0),  # a batch script
    ],
)
def test_a_process_knows_its_gpu(variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert local_rank() == expected
