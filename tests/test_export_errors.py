"""``export.py``: what it refuses, and what a stopped or failed export leaves: nothing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from commands import Command
from conftest import ROOT
from export_case import LORA, chat_run
from helpers import exact_gpt2_words
from small_run import small_words

import export
from dinado.errors import DataError
from engine import exporting, hub_upload
from workbench.run_folder import RunFolder
from workbench.settings import loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, str]:
    lora = chat_run(folder, *LORA)
    strong = folder / "strong"
    shutil.copytree(lora, strong)
    settings = (strong / "config.yaml").read_text()
    (strong / "config.yaml").write_text(settings.replace("alpha: 1.0 ", "alpha: 1.5 "))
    return {
        "LORA": str(lora),
        "STRONG": str(strong),
        "NETWORK": untrained("quickstart", *small_words(folder, "method=nado")[1:]),
        "FULL": untrained("quickstart", *small_words(folder, "method=dinado_merge", "parameters=full")[1:]),
        "GPT2": untrained("exact_world", *exact_gpt2_words(folder, *LORA)),
        "EXACT": untrained("exact_world", *exact_gpt2_words(folder, "method=nado")),
    }


def untrained(experiment: str, *words: str) -> str:
    """A run that has its settings and no more."""
    return str(RunFolder.create(loader.load(experiment, words)).path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--out OUT", "name one run"),
        ("LORA LORA --out OUT", "name one run"),
        ("LORA", "--out is missing"),
        ("no/such/run --out OUT", "no run at"),
        ("LORA --out OUT --as magic", "--as magic: choose merged, adapter, controlled"),
        ("LORA --out OUT --dtype int8", "--dtype int8: choose float32, bfloat16, float16"),
        ("LORA --out OUT --as adapter --dtype float16", "--as adapter keeps the weights as they were trained"),
        ("LORA --out OUT optim.lr=1", "takes no settings but base.name, data.cache"),
        ("LORA --out OUT/deep/er", "create it first"),
        ("LORA --out FULLFOLDER", "it exists and is not empty"),
        ("LORA --out FULLFOLDER/file", "it exists and is not empty"),
        ("NETWORK --out OUT --as merged", "parameters=network has no such form; the run can be exported as controlled"),
        (
            "NETWORK --out OUT --as adapter",
            "parameters=network has no such form; the run can be exported as controlled",
        ),
        ("FULL --out OUT --as adapter", "has no such form; the run can be exported as merged or controlled"),
        (
            "STRONG --out OUT --as merged",
            "alpha=1.5 runs the base beside the trained model; the run can be exported as",
        ),
        ("GPT2 --out OUT --as adapter", "no folder can name it; the run can be exported as merged"),
        (
            "EXACT --out OUT",
            "made by task.name=exact_gpt2, and no folder can name it; nor can it be exported otherwise",
        ),
        ("LORA --out OUT base.name=/nowhere/model", "base.name=/nowhere/model: cannot be loaded"),
        ("LORA --out OUT --push-to-hub not:a:name", "--push-to-hub not:a:name"),
        ("LORA --out OUT --push-to-hub me/mine", "nobody is logged in to the Hugging Face Hub; log in with `hf auth"),
    ],
)
def test_mistakes(
    runs: dict[str, str], command: Command, tmp_path: Path, words: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    places = {"OUT": str(tmp_path / "out"), "FULLFOLDER": str(tmp_path / "full")} | runs
    for name, value in places.items():
        words = " ".join(value + word.removeprefix(name) if word.startswith(name) else word for word in words.split())
    assert says in command(export, *words.split()).error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"], "nothing is left"


def test_the_default_of_a_strength_other_than_one_keeps_it(
    runs: dict[str, str], command: Command, tmp_path: Path
) -> None:
    result = command(export, runs["STRONG"], "--out", str(tmp_path / "out"), "--json")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert result.json["kind"] == "controlled" and config["alpha"] == 1.5


def test_an_empty_folder_is_filled(runs: dict[str, str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert command(export, runs["LORA"], "--out", str(tmp_path / "out")).code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode == (tmp_path / "out" / "README.md").stat().st_mode


def test_a_folder_that_computes_another_model_is_not_kept(
    runs: dict[str, str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, base = exporting.load_again, Path(runs["LORA"]).parents[2] / "model"
    other = lambda folder, kind, source: loaded(base, kind, source)  # noqa: E731
    monkeypatch.setattr(exporting, "load_again", other)
    assert "computes another model than the run" in command(export, runs["LORA"], "--out", str(tmp_path / "out")).error
    assert not list(tmp_path.iterdir())


SLOW = """
import sys, time
sys.path[:0] = [sys.argv.pop(1)]
import export
from engine import exporting
from workbench import cli

def wait(*args):
    print("writing", flush=True)
    time.sleep(100)

exporting.save_tokenizer = wait
sys.exit(cli.run(export.main, "", export.OPTIONS, export.SETTINGS))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_export_leaves_nothing(runs: dict[str, str], tmp_path: Path, number: int, code: int) -> None:
    words = [sys.executable, "-c", SLOW, str(ROOT), runs["LORA"], "--out", str(tmp_path / "out")]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None and running.stdout.readline() == "writing\n"
        (hidden,) = tmp_path.iterdir()
        assert hidden.name.startswith(".out.part-") and (hidden / "model.safetensors").is_file()
        running.send_signal(number)
        _, err = running.communicate(timeout=100)
    finally:
        running.kill()
    assert running.returncode == code and "Traceback" not in err, err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(runs: dict[str, str], tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    words = [sys.executable, str(ROOT / "export.py"), runs["LORA"], "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=small_files, timeout=300)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "cannot be written" in line and "File too large" in line, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


class Hub:
    """A stand-in for the hub's client that notes its calls."""

    calls: list[tuple[str, Any]] = []
    fails = ""

    def whoami(self) -> dict[str, str]:
        return {"name": "me"}

    def create_repo(self, repo: str, **settings: Any) -> str:
        self.calls.append((repo, settings))
        return f"https://hub/{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
        if self.fails:
            raise RuntimeError(self.fails)
        self.calls.append((repo_id, sorted(os.listdir(folder_path))))


def test_an_upload_is_private_and_whole(
    runs: dict[str, str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    words = [runs["LORA"], "--as", "adapter", "--push-to-hub", "me/mine", "--out"]
    assert command(export, *words, str(tmp_path / "out"), "--json").json["url"] == "https://hub/me/mine"
    made, sent = Hub.calls
    assert made == ("me/mine", {"private": True, "exist_ok": True})
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(sent[1])
    assert 'name = "me/mine"' in (tmp_path / "out" / "README.md").read_text()
    monkeypatch.setattr(Hub, "fails", "quota\nexceeded")
    with pytest.raises(DataError, match=r"quota exceeded; .* is complete: upload it with `hf upload me/mine"):
        hub_upload.upload("me/mine", tmp_path / "out")
