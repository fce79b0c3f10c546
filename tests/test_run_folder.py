"""Run folders: who writes, how runs are called, and a STATUS that stays true."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinado.errors import CheckpointError, ConfigError, Stopped
from dinado.ranks import is_writer
from workbench.run_folder import RunFolder, find_run
from workbench.run_ids import choose_run_id
from workbench.run_status import status
from workbench.settings import loader


@pytest.fixture
def create(tmp_path):
    def new(*overrides: str) -> RunFolder:
        words = [f"runs={tmp_path / 'runs'}", *overrides]
        return RunFolder.create(loader.load("exact_world", words), words)

    return new


# Ids


def test_run_ids_by_time_differ():
    first, second = choose_run_id(), choose_run_id()
    assert first != second and os.environ["DINADO_RUN_ID"] == second


def test_launched_processes_inherit_the_id(monkeypatch):
    chosen = choose_run_id()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_run_id() == chosen
    monkeypatch.setenv("LOCAL_RANK", "0")  # the launcher sets this in the first process, whose next run is a new one
    assert choose_run_id() != chosen


def test_wandb_decides_the_id(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert choose_run_id() == "abc"


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"])
def test_jobs_give_stable_ids(monkeypatch, variable):
    monkeypatch.setenv(variable, "7")
    first = choose_run_id(["quickstart", "seed=1"])
    assert choose_run_id(["quickstart", "seed=1"]) == first  # a requeued job, or another rank of it
    assert choose_run_id(["quickstart", "seed=2"]) != first  # another command in the same job
    monkeypatch.setenv(variable, "8")
    assert choose_run_id(["quickstart", "seed=1"]) != first


def test_torchrun_without_rendezvous_id_is_told_apart_by_its_process(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    code = "from workbench.run_ids import choose_run_id; print(choose_run_id())"
    launcher = f"import subprocess, sys\nfor _ in range(2): subprocess.run([sys.executable, '-c', {code!r}])"
    root = str(loader.EXPERIMENTS.parent)
    launches = [
        subprocess.run(
            [sys.executable, "-c", launcher], cwd=root, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert [len(set(ids)) for ids in launches] == [1, 1]
    assert launches[0] != launches[1]


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_only_the_first_process_writes(monkeypatch, create, tmp_path, variable):
    assert is_writer()
    monkeypatch.setenv(variable, "1")
    assert not is_writer()
    with create() as folder:
        folder.append_metrics({"step": 1})
        folder.truncate_metrics(0)
    assert not (tmp_path / "runs").exists()


# Content


def test_new_folder(create, tmp_path):
    folder = create("seed=3")
    assert folder.path == tmp_path / "runs" / "exact_world" / folder.run_id
    assert (folder.path / "overrides.txt").read_text().splitlines()[1] == "seed=3"
    assert loader.from_run_folder(folder.path).config.seed == 3
    env = json.loads((folder.path / "env.json").read_text())
    assert env["cpu_count"] == os.cpu_count() and env["versions"]["torch"] and "git" in env
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "env.json", "overrides.txt"]


def test_an_existing_run_is_not_overwritten(create, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    with create() as folder:
        pass
    with pytest.raises(CheckpointError, match=r"abc exists \(finished\); continue it with --resume"):
        create()
    assert status(folder.path) == "finished"


def test_metrics(create):
    folder = create()
    assert folder.metrics() == []
    folder.append_metrics({"step": 1, "train/loss": math.nan})
    folder.append_metrics({"step": 2, "train/loss": 0.5})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('3\n\x00\n{"step": 3, "train/l')  # killed in the middle of a line
    folder.append_metrics({"step": 4, "train/loss": 0.25})
    assert [record["step"] for record in folder.metrics()] == [1, 2, 4]
    assert folder.metrics()[0]["train/loss"] is None
    folder.truncate_metrics(3)
    assert (folder.path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 1, "train/loss": null}',
        '{"step": 2, "train/loss": 0.5}',
    ]


# Status


def ends(folder: RunFolder, error: BaseException | None) -> str:
    with pytest.raises(type(error)) if error else contextlib.nullcontext(), folder:
        assert status(folder.path) == "running"
        if error:
            raise error
    return status(folder.path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, "finished"),
        (SystemExit(0), "failed: SystemExit: 0"),
        (SystemExit(), "failed: SystemExit:"),
        (SystemExit(130), "interrupted"),
        (SystemExit(1), "failed: SystemExit: 1"),
        (SystemExit(75), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (Stopped("SIGUSR1"), "interrupted: SIGUSR1"),
        (RuntimeError("two\nlines"), "failed: RuntimeError: two lines"),
        (ConfigError("bad"), "failed: ConfigError: bad"),
    ],
)
def test_status_tells_how_a_run_ended(create, error, expected):
    assert ends(create(), error) == expected


@pytest.mark.parametrize(
    ("before", "error", "after"),
    [
        ("finished", ConfigError("no such base"), "finished"),
        ("finished", RuntimeError("bug"), "finished"),
        ("finished", KeyboardInterrupt(), "finished"),
        ("interrupted: SIGUSR1", ConfigError("no such base"), "interrupted: SIGUSR1"),
        ("interrupted: SIGUSR1", RuntimeError("bug"), "failed: RuntimeError: bug"),
        ("interrupted: SIGUSR1", Stopped("SIGTERM"), "interrupted: SIGTERM"),
        ("failed: OracleError: NaN", ConfigError("no such base"), "failed: ConfigError: no such base"),
    ],
)
def test_a_refused_start_leaves_the_end_before(create, before, error, after):
    folder = create()
    folder.mark(*before.split(": ", 1))
    assert ends(folder, error) == after


@pytest.mark.parametrize("change", [lambda folder: folder.truncate_metrics(0), lambda folder: folder.change(None, [])])
def test_a_start_that_changed_something_tells_its_own_end(create, change):
    folder = create()
    folder.mark("finished")
    with pytest.raises(ConfigError), folder:
        change(folder)
        raise ConfigError("too late")
    assert status(folder.path) == "failed: ConfigError: too late"


def test_a_run_may_say_itself_how_it_ended(create):
    folder = create()
    with pytest.raises(SystemExit), folder:
        folder.mark("preempted", "SIGTERM at step 7")
        raise SystemExit(75)
    assert status(folder.path) == "preempted: SIGTERM at step 7"


def start_and_wait(folder: RunFolder) -> subprocess.Popen:
    """Another process that has entered the run."""
    code = (
        "import sys, time; from workbench.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]): print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE, cwd=loader.EXPERIMENTS.parent
    )
    assert process.stdout and process.stdout.readline() == b"in\n"
    return process


def test_a_killed_run_is_not_running(create):
    folder = create()
    process = start_and_wait(folder)
    try:
        assert status(folder.path) == "running"
        with pytest.raises(CheckpointError, match=f"still running, process {process.pid}"), folder:
            pass
        assert status(folder.path) == "running"
    finally:
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while status(folder.path) == "running" and time.monotonic() < deadline:  # not yet reaped: it is a zombie
        time.sleep(0.01)
    assert status(folder.path) == "killed"
    process.wait()
    assert status(folder.path) == "killed"
    assert ends(folder, None) == "finished"  # it can be continued


def test_interrupted_from_outside(create):
    folder = create()
    process = start_and_wait(folder)
    process.send_signal(signal.SIGINT)
    process.wait()
    assert status(folder.path) == "interrupted"


def test_a_process_that_reuses_the_number_is_not_the_run(create):
    folder = create()
    folder.mark("running")
    state, owner = (folder.path / "STATUS").read_text().splitlines()
    (folder.path / "STATUS").write_text(f"{state}\n{json.dumps(json.loads(owner) | {'started': 'long ago'})}\n")
    assert status(folder.path) == "killed"
    (folder.path / "STATUS").write_text(f"{state}\n{json.dumps(json.loads(owner) | {'host': 'other', 'pid': 1})}\n")
    assert status(folder.path) == "running"  # nothing is known about other machines


@pytest.mark.parametrize("content", [b"running\n\xff\xfe", b"running\n3", b'running\n{"host": "HOST", "pid": "abc"}'])
def test_status_that_somebody_has_written_into(create, content):
    folder = create()
    (folder.path / "STATUS").write_bytes(content.replace(b"HOST", socket.gethostname().encode()))
    assert status(folder.path) in ("running", "killed")


def test_status_without_a_file(tmp_path):
    assert status(tmp_path) == "unknown"


# Finding


def test_find_run(create, tmp_path, monkeypatch):
    folder = create()
    checkpoint = folder.path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    for path in (folder.path, checkpoint.parent, checkpoint):
        assert find_run(path).path == folder.path
    for missing, hint in [
        (folder.path.parent / "nope", f"no run at .*; the latest is {folder.path}"),
        (checkpoint.parent / "nope.ckpt", "no run at .*nope.ckpt"),
        (tmp_path / "runs", f"runs is not a run; the latest in it is {folder.path}"),
        (tmp_path / "runs" / "nope" / "x", f"the latest is {folder.path}"),
    ]:
        with pytest.raises(CheckpointError, match=hint):
            find_run(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty is not a run; nor holds any"):
        find_run(tmp_path / "empty")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no run at elsewhere"):
        find_run(Path("elsewhere"))
