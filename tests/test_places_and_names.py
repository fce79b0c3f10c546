"""Text that is no text, paths that belong to another folder, and names that are no names."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command
from small_run import SIX, save_base, save_prompts, small_words

import evaluate
import generate
import train
from datamodules.tasks.json_rows import read_rows
from dinado.errors import CheckpointError, ConfigError, DataError
from engine.prompt_input import open_prompts
from workbench.run_folder import find_run
from workbench.run_ids import choose_run_id
from workbench.settings import loader

ODD = "one\u2028two\u2029three\x85four\x1cfive"
"""Characters at which Python's ``splitlines`` splits and JSON does not."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run whose paths are all relative to it."""
    folder = tmp_path_factory.mktemp("template")
    save_base(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "modules", {name: module for name, module in sys.modules.items() if name != "mine"})
        patch.setenv("WANDB_RUN_ID", "good")
        from workbench import cli

        assert cli.run(train.main, "", train.OPTIONS, True, small_words(Path(), "base.name=./model")) == 0
    return folder


@pytest.fixture
def here(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder; the command is given elsewhere."""
    folder = tmp_path / "here"
    shutil.copytree(template, folder)
    file = folder / "runs" / "quickstart" / "good" / "env.json"
    file.write_text(file.read_text().replace(str(template), str(folder)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


def run_in(folder: Path) -> str:
    return str(folder / "runs" / "quickstart" / "good")


# Text


READERS: dict[str, Callable[[Path], list[str]]] = {
    "train": lambda file: [row["prompt"] for _, row in read_rows(file)],
    "generate": lambda file: [prompt.text for prompt in open_prompts(None, str(file)).take(9)],
}


@pytest.mark.parametrize("reader", READERS)
def test_json_lines_end_in_line_feeds_alone(reader: str, tmp_path: Path) -> None:
    file, read = tmp_path / "prompts.jsonl", READERS[reader]
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in (ODD, "next")]
    for end in ("\n", "\r\n"):
        for mark in ("", "\ufeff"):
            file.write_bytes((mark + end.join(lines)).encode())
            assert read(file) == [ODD, "next"]


@pytest.mark.parametrize("field", ["prompt", "other"])
@pytest.mark.parametrize("reader", READERS)
def test_half_a_surrogate_pair_is_named_with_its_line(reader: str, field: str, tmp_path: Path) -> None:
    file, good = tmp_path / "prompts.jsonl", '{"prompt": "\\ud83d\\ude00 \\u00e9"}\n'
    file.write_text(good * 2 + '{"prompt": "x", "' + field + '": "a\\ud83d"}\n')
    with pytest.raises(DataError, match=r"line 3.*surrogate"):
        READERS[reader](file)
    file.write_text(good)
    assert READERS[reader](file) == ["\U0001f600 é"]


def test_prompts_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\ufeff{ODD}\r\n\nnext\n"))
    assert [prompt.text for prompt in open_prompts(None, None).take(9)] == [ODD, "next"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert open_prompts(None, None).take(9) == []
    monkeypatch.setattr(sys, "stdin", io.StringIO("fine\n\udcff\udcfe"))
    source = open_prompts(None, None)
    assert [prompt.text for prompt in source.take(9)] == ["fine"]
    with pytest.raises(DataError, match="stdin, line 2 is not UTF-8"):
        source.take(9)
    with pytest.raises(DataError, match="--prompt is not UTF-8"):
        open_prompts(b"\xff".decode("utf-8", "surrogateescape"), None)


def test_a_row_keeps_its_own_text(here: Path, tmp_path: Path, command: Command) -> None:
    for rows, field in (
        ([{"prompt": "a", "kept": 1}], "text"),
        ([{"prompt": "a", "text": "mine"}, {"prompt": "b"}], "response"),
    ):
        save_prompts(tmp_path / "in.jsonl", rows)
        words = [
            run_in(here),
            "--input",
            str(tmp_path / "in.jsonl"),
            "--output",
            str(tmp_path / "out.jsonl"),
            "--overwrite",
        ]
        assert command(generate, *words).code == 0
        found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [{key: value for key, value in row.items() if key != field} for row in found] == rows
        assert all(isinstance(row[field], str) for row in found)
    save_prompts(tmp_path / "in.jsonl", [{"prompt": "a", "text": "mine", "response": "mine too"}])
    assert "rename one" in command(generate, *words).error


# Places


def test_paths_belong_to_the_folder_they_were_given_in(here: Path, command: Command) -> None:
    run = run_in(here)
    stores = set(here.glob("cache/rollouts/*"))
    assert command(generate, run, "--prompt", "hi").code == 0
    assert command(evaluate, run).code == 0
    result = command(train, "--resume", run, "optim.steps=3", "--json")
    assert result.code == 0, result.err
    assert set(here.glob("cache/rollouts/*")) == stores and os.listdir() == []
    again = loader.from_run_folder(run).config
    assert again.task.path == str(here / "prompts.jsonl") and again.data.cache == str(here / "cache")


def test_in_their_own_folder_paths_stay_as_they_are(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    config = loader.from_run_folder(run_in(here)).config
    assert (config.base.name, config.task.path, config.data.cache) == ("./model", "./prompts.jsonl", "./cache")


def test_a_path_of_the_command_line_belongs_to_the_current_folder(here: Path) -> None:
    save_prompts(Path("prompts.jsonl"), SIX)
    config = loader.from_run_folder(run_in(here), ["task.path=prompts.jsonl", "base.name=nobody/knows"]).config
    assert config.task.path == str(Path("prompts.jsonl").resolve()) and config.base.name == "nobody/knows"


def test_a_folder_that_has_moved_is_read_from_where_one_stands(
    here: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert command(generate, "runs/quickstart/good", "--prompt", "hi").code == 0


def test_a_base_that_has_moved(here: Path, tmp_path: Path, command: Command) -> None:
    run = run_in(here)
    (here / "model").rename(tmp_path / "moved")
    assert "base.name=" in command(generate, run, "--prompt", "hi").error
    assert command(generate, run, "--prompt", "hi", "base.name=../moved").code == 0
    save_base(tmp_path / "other", seed=1)
    error = command(generate, run, "--prompt", "hi", f"base.name={tmp_path}/other").error
    assert "trained on another base" in error
    assert "takes no settings but base.name" in command(generate, run, "--prompt", "hi", "alpha=2").error


def test_a_link_is_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(run_in(here))
    Path("latest").symlink_to(run)
    Path("runs").symlink_to(here / "runs")
    for path in ("latest", "latest/checkpoints/last.ckpt", run, "runs/quickstart/good"):
        found = find_run(path)
        assert found.run_id == "good" and found.path.resolve() == run, path
    assert str(find_run("runs/quickstart/good").path) == "runs/quickstart/good"
    monkeypatch.chdir(run)
    assert find_run(".").run_id == "good"
    Path("gone").symlink_to("nowhere")
    with pytest.raises(CheckpointError):
        find_run("gone")


# Names


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", ".", "a\\b", "a:b", "a\nb", " "])
def test_an_id_is_no_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", name)
    with pytest.raises(ConfigError, match="WANDB_RUN_ID"):
        choose_run_id()


def test_ids_that_are_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good", "a.b-c_d", "2024 first", "é"):
        monkeypatch.setenv("WANDB_RUN_ID", name)
        assert choose_run_id() == name


def test_a_shell_in_an_allocation_is_one_process(here: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    allocation = {"JOB_ID": "77", "NTASKS": "4", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "sys/dash"}
    for name, value in allocation.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    result = command(train, *small_words(Path(), "base.name=./model", "optim.steps=1"), "--json")
    assert result.code == 0, result.err


@pytest.mark.parametrize("targets", ["[embed_tokens]", "[q_proj,model.embed_tokens]", ".*embed_tokens"])
def test_adapters_on_an_embedding(here: Path, command: Command, targets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    words = small_words(Path(), "base.name=./model", f"lora.targets={targets}", "--dry-run")
    assert "embed_tokens is an embedding" in command(train, *words).error
