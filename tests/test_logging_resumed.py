"""A run that is stopped, killed and resumed, and one of two processes: no logger says anything twice."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import process
from conftest import ROOT
from helpers import exact_gpt2_words
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_files import Page, pages

import train
from workbench import cli
from workbench.run_folder import RunFolder

WORDS = (
    *("method=nado", "network.width=16", "network.heads=2", "trainer.val_every=3", "trainer.checkpoint_every=2"),
    *("logging.wandb=offline", "logging.artifacts=[checkpoints]", "logging.tensorboard=true", "logging.csv=true"),
)
# A signal to itself once the numbers of a step are out, and W&B has had the time that it may take to write them.
STRUCK = """
import os, signal, sys, time
import train
from workbench import cli
from lightning_modules.rollout_method import RolloutMethod
from engine.loggers.wandb_page import WRITE_OUT_SECONDS
step, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
say = RolloutMethod._log_step
def struck(method, *batch):
    say(method, *batch)
    if method.global_step == step:
        time.sleep(10 * WRITE_OUT_SECONDS)
        os.kill(os.getpid(), number)
RolloutMethod._log_step = struck
sys.exit(cli.run(train.main, "", train.OPTIONS))
"""


def struck(step: int, number: signal.Signals, *words: str) -> int:
    """``train.py`` in a process that is sent a signal after a step; its exit code."""
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    command = [sys.executable, "-c", STRUCK, str(step), str(int(number)), *words]
    environment |= {"WANDB_RUN_ID": "run", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300).returncode


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped by Ctrl-C after step 1, killed after step 4 with a checkpoint of step 3, then finished."""
    folder = tmp_path_factory.mktemp("resumed")
    run = folder / "runs" / "exact_world" / "run"
    assert struck(1, signal.SIGINT, "exact_world", *exact_gpt2_words(folder, *WORDS)) == 130
    assert struck(4, signal.SIGKILL, "--resume", str(run)) == -signal.SIGKILL
    assert [record["step"] for record in RunFolder(run).metrics()] == [0, 0, 1, 2, 2, 3, 4]
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == list("0012234"), "up to date at every step"
    assert go_on(run) == 0
    return run


def go_on(run: Path) -> int:
    """``train.py --resume``, here, which saves imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE")
        return cli.run(train.main, "", train.OPTIONS, argv=["--resume", str(run)])


def test_starts_of_a_run_are_one_page_without_a_number_twice(resumed: Path) -> None:
    starts, records = pages(resumed), RunFolder(resumed).metrics()
    assert [len(page.points) for page in starts] == [3, 4, 3], "step 4 was out, step 5, a validation and the end not"
    assert {page.run.run_id for page in starts} == {"run"} and len({page.run.display_name for page in starts}) == 1
    points = [point for page in starts for point in page.points]
    assert [step for step, _ in points] == [record["step"] for record in records]
    for (_, found), record in zip(points, records, strict=True):
        assert found.keys() == record.keys() - {"step"}
        # How fast a step went is another number when it is made again; the record has that of the last time.
        for name in found.keys() - {name for name in found if name.startswith("perf/")}:
            expected = math.nan if record[name] is None else record[name]
            assert found[name] == pytest.approx(expected, rel=0, abs=0, nan_ok=True), name
    rows = [row["_step"] for page in starts for row in page.history]
    assert rows == list(range(len(records) + 1)), "counted on from start to start"


def test_pages_say_how_a_start_ended(resumed: Path) -> None:
    assert [page.exit_code for page in pages(resumed)] == [130, None, 0]
    assert ["model" in page.artifacts for page in pages(resumed)] == [False, False, True]


def test_a_finished_run_that_is_resumed_says_nothing_new(resumed: Path) -> None:
    before = (resumed / "wandb" / "given.jsonl").read_bytes()
    assert go_on(resumed) == 0
    assert (resumed / "wandb" / "given.jsonl").read_bytes() == before
    assert pages(resumed)[-1].history == []
    agree(resumed)


def test_a_run_that_goes_back_to_an_older_checkpoint_gives_nothing_twice(resumed: Path) -> None:
    before = (resumed / "wandb" / "given.jsonl").read_bytes()
    assert go_on(resumed / "checkpoints" / "previous.ckpt") == 0
    page = pages(resumed)[-1]
    assert (resumed / "wandb" / "given.jsonl").read_bytes() == before and page.history == []
    (file,) = page.artifacts["model"].manifest.contents
    assert file.local_path == str(resumed / "checkpoints" / "last.ckpt"), "its end, not where it went on from"
    agree(resumed)


def test_event_files_and_table_follow_the_record(resumed: Path) -> None:
    assert len(list((resumed / "tensorboard").iterdir())) > 3
    agree(resumed)


def agree(run: Path) -> None:
    """TensorBoard and the table have the steps of metrics.jsonl, each name as often, and its values."""
    records = RunFolder(run).metrics()
    expected: dict[str, list[tuple[int, Any]]] = {}
    for record in records:
        for name in record.keys() - {"step"}:
            expected.setdefault(name, []).append((record["step"], math.nan if record[name] is None else record[name]))
    curves = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert set(curves.Tags()["scalars"]) == expected.keys()
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [record["step"] for record in records]
    for name, points in expected.items():
        steps, values = zip(*points, strict=True)
        scalars = curves.Scalars(name)
        assert tuple(event.step for event in scalars) == steps, name
        assert [event.value for event in scalars] == pytest.approx(values, rel=1e-6, nan_ok=True), name
        assert [float(row[name]) for row in rows if row[name]] == pytest.approx(values, nan_ok=True), name


@pytest.mark.slow
@pytest.mark.ddp
def test_of_two_processes_one_speaks(tmp_path: Path) -> None:
    words = exact_gpt2_words(tmp_path, *WORDS, "trainer.devices=2")
    assert process("train.py", "exact_world", *words, WANDB_MODE="offline").code == 0
    (run,) = (tmp_path / "runs" / "exact_world").iterdir()
    (page,) = pages(run)
    records = RunFolder(run).metrics()
    assert _counted(page) == Counter((record["step"], *sorted(record.keys() - {"step"})) for record in records)
    for (_, found), record in zip(page.points, records, strict=True):
        values = [math.nan if record[name] is None else record[name] for name in found]
        assert list(found.values()) == pytest.approx(values, rel=0, abs=0, nan_ok=True)
    assert len(list(run.glob("wandb/*run-*"))) == 1 and "samples" in page.history[-1]
    agree(run)


def _counted(page: Page) -> Counter[tuple[Any, ...]]:
    return Counter((step, *sorted(found)) for step, found in page.points)
