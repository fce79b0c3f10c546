"""A real run with every logger on, offline, and what each of them has left, against metrics.jsonl."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers import exact_gpt2_words
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_files import Page, pages, texts

from workbench.run_folder import RunFolder
from workbench.run_names import names
from workbench.settings import loader

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefsecret01",
    "HF_TOKEN": "hf_secret02",
    "HUGGING_FACE_HUB_TOKEN": "hf_secret03",
    "AWS_SECRET_ACCESS_KEY": "secret04",
    "OPENAI_API_KEY": "sk-secret05",
}
REMOTE = "https://secret06:x-oauth-basic@host/code.git"
WORDS = (
    *("method=dinado_soft", "network.width=16", "network.heads=2", "optim.lr=3e-3", "seed=2"),
    *("trainer.val_every=3", "rollouts.rounds=2", "targets.weights=balance"),
    *("logging.wandb=offline", "logging.artifacts=[checkpoints,rollouts]", "logging.tags=[one]"),
    *("logging.tensorboard=true", "logging.csv=true"),
)


@dataclasses.dataclass
class Done:
    """A finished run, and what its process printed."""

    path: Path
    home: Path
    printed: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return RunFolder(self.path).metrics()

    @property
    def page(self) -> Page:
        (page,) = pages(self.path)
        return page


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Inside somebody's repository whose remote holds a token, in an environment that holds more."""
    folder = tmp_path_factory.mktemp("logged")
    (folder / "home").mkdir()
    for words in (["init", "--quiet"], ["remote", "add", "origin", REMOTE]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    clean = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "exact_world", *exact_gpt2_words(folder, *WORDS)],
        cwd=folder,
        env=clean | SECRETS | {"HOME": str(folder / "home"), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    (run,) = (folder / "runs" / "exact_world").iterdir()
    return Done(run, folder / "home", result.stdout + result.stderr)


def same(found: Mapping[str, Any], record: Mapping[str, Any], relative: float = 0.0) -> None:
    """The names and values of a record, NaN for null; nothing else."""
    assert found.keys() == record.keys() - {"step"}
    for name, value in found.items():
        expected = math.nan if record[name] is None else record[name]
        assert float(value) == pytest.approx(expected, rel=relative, abs=0.0, nan_ok=True), name


# W&B


def test_every_number_is_on_the_page_once(done: Done) -> None:
    points = done.page.points
    assert [step for step, _ in points] == [record["step"] for record in done.records]
    for (_, found), record in zip(points, done.records, strict=True):
        same(found, record)
    names = set().union(*(record.keys() for record in done.records))
    assert len(points) == 6 + 2 + 3 and {"train/loss", "val/success", "rollouts/round"} <= names
    assert "epoch" not in names, "all is counted in optimiser steps"
    assert [row["_step"] for row in done.page.history] == list(range(len(points) + 1))


def test_one_axis_for_all(done: Done) -> None:
    assert done.page.x_axes == {"trainer/global_step": "", "*": "trainer/global_step"}


def test_the_summary_is_the_final_record(done: Done) -> None:
    final = done.records[-1]
    found = {name: value for name, value in done.page.summary.items() if name in final}
    same(found, final)


def test_a_page_says_what_the_run_is(done: Done) -> None:
    page, config = done.page, loader.from_run_folder(done.path).config
    assert page.run.run_id == done.path.name and page.run.project == "dinado"
    name, group = names(config, "exact_world", exact_gpt2_words("", *WORDS))
    assert page.run.display_name == name and name.startswith("dinado_soft task.name=") and name.endswith(" seed=2")
    assert page.run.run_group == group and group.startswith("exact_world dinado_soft task.name=")
    assert page.run.job_type == "train" and list(page.run.tags) == ["one"]
    assert page.exit_code == 0 and page.run.resume
    expected = json.loads(json.dumps(dataclasses.asdict(config)))
    assert {key: value for key, value in page.config.items() if key != "_wandb"} == expected
    assert page.config["optim"]["lr"] == 0.003, "nested"


def test_the_settings_are_among_its_files(done: Done) -> None:
    assert "settings/config.yaml" in done.page.files
    kept = done.page.file.parent / "files" / "settings" / "config.yaml"
    assert kept.read_bytes() == (done.path / "config.yaml").read_bytes() and not kept.is_symlink()


def staged(artifact: Any) -> Iterator[tuple[str, bytes]]:
    """Files of an artifact that wait to be uploaded, each with the checksum on record."""
    for entry in artifact.manifest.contents:
        content = Path(entry.local_path).read_bytes()
        assert base64.b64encode(hashlib.md5(content).digest()).decode() == entry.digest
        yield entry.path, content


def test_the_sample_table(done: Done) -> None:
    (row,) = [row["samples"] for row in done.page.history if "samples" in row]
    assert row["_type"] == "table-file" and row["nrows"] == 1 and row["ncols"] == 4
    files = dict(staged(done.page.artifacts["run_table"]))
    table = json.loads(files["samples.table.json"])
    assert table["columns"] == ["prompt", "text", "oracle", "R along the text"]
    samples = [json.loads(line) for line in (done.path / "samples" / "after.jsonl").read_text().splitlines()]
    traced = [sample for sample in samples if "r" in sample]
    assert [found[:3] for found in table["data"]] == [[one["prompt"], one["text"], one["score"]] for one in traced]
    html = files[table["data"][0][3]["path"]].decode()
    for r in traced[0]["r"]:
        assert f'title="R {r:.2f}"' in html


def test_artifacts(done: Done) -> None:
    model, rollouts = done.page.artifacts["model"], done.page.artifacts["rollouts"]
    assert model.name == f"model-{done.path.name}" and model.finalize
    assert dict(staged(model)) == {"last.ckpt": (done.path / "checkpoints" / "last.ckpt").read_bytes()}
    entries = list(rollouts.manifest.contents)
    assert not any(entry.local_path for entry in entries), "by reference: no content"
    for entry in entries:
        content = Path(entry.ref.removeprefix("file://")).read_bytes()
        assert base64.b64encode(hashlib.md5(content).digest()).decode() == entry.digest
    stores = {str(file) for file in (done.path.parents[2] / "cache" / "rollouts").rglob("*") if file.is_file()}
    assert {entry.ref.removeprefix("file://") for entry in entries} == stores
    splits = [entry.path.split("/")[0] for entry in entries]
    assert len({"/".join(entry.path.split("/")[:2]) for entry in entries}) == 4 and set(splits) == {"train", "val"}


def test_nothing_of_a_run_lies_elsewhere(done: Done) -> None:
    assert not list(done.home.glob(".local/share/wandb/**/staging/*"))


def test_no_secret_is_written_or_printed(done: Done) -> None:
    """Neither keys of the environment nor those in the remote of a repository."""
    assert "secret" not in done.printed
    kept = [file for folder in (done.path, done.home) for file in folder.rglob("*") if file.is_file()]
    assert {"env.json", "config.yaml", "debug.log", "debug-internal.log"} <= {file.name for file in kept}
    assert [file for file in kept if b"secret" in file.read_bytes()] == []
    assert "secret" not in texts(done.page.file) and "host/code.git" not in done.page.remote


# TensorBoard and CSV


def test_tensorboard_has_the_same_numbers(done: Done) -> None:
    curves = EventAccumulator(str(done.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = {name: [(event.step, event.value) for event in curves.Scalars(name)] for name in curves.Tags()["scalars"]}
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in done.records:
        for name, value in record.items():
            if name != "step":
                expected.setdefault(name, []).append((record["step"], math.nan if value is None else value))
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        values = [value for _, value in points]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-6, nan_ok=True), "float32"
    assert [file.name for file in (done.path / "tensorboard").iterdir() if "tfevents" not in file.name] == []


def test_the_table_has_the_same_numbers(done: Done) -> None:
    with (done.path / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row.pop("step")) for row in rows] == [record["step"] for record in done.records]
    for row, record in zip(rows, done.records, strict=True):
        same({name: value for name, value in row.items() if value}, record)
