"""The card of an exported run: its numbers, its metadata, and the programs and commands that it shows."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch
from commands import Command
from export_case import LORA, chat_run
from huggingface_hub import ModelCard, ModelCardData

import export
from dinado.bases import smollm2
from dinado.bases.origin import Origin, origin_of
from engine.model_card import SHOWN, settings_that_matter
from engine.results import last_numbers
from workbench.run_folder import RunFolder
from workbench.settings import loader

BASE_CARD = "---\nlicense: other\nlicense_name: home-made\nlicense_link: https://x/licence\n---\n# A base\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("card")


@pytest.fixture(scope="module")
def lora(folder: Path) -> Path:
    run = chat_run(folder, *LORA, "rollouts.per_prompt=16")
    (folder / "model" / "README.md").write_text(BASE_CARD)
    return run


@pytest.fixture(scope="module")
def network(folder: Path, lora: Path) -> Path:
    return chat_run(folder, "method=nado", "network.width=16")


def card_of(command: Command, run: Path, out: Path, *words: str) -> ModelCard:
    assert command(export, str(run), "--out", str(out), *words).code == 0
    return ModelCard.load(out / "README.md")


def test_its_numbers_are_the_run_s(lora: Path, command: Command, tmp_path: Path) -> None:
    card = card_of(command, lora, tmp_path / "mine")
    numbers = last_numbers(RunFolder(lora))
    results = {result.metric_type: result for result in card.data.eval_results}
    assert set(results) == {key.removeprefix("val/") for key in SHOWN}, "all were measured in this run"
    for key in SHOWN:
        result = results[key.removeprefix("val/")]
        assert result.metric_value == numbers[key]
        assert f"{numbers[f'{key}_low']:.3f} to {numbers[f'{key}_high']:.3f}" in result.metric_name
    rows = [re.split(r"(?<!\\)\|", line) for line in card.text.splitlines() if line.startswith("| ")]
    cells = {row[1].strip(" `").replace("\\", ""): [cell.strip() for cell in row[2:-1]] for row in rows}
    for label, key in (("success", "success"), ("KL(q*||q)", "kl_to_optimum"), ("gap closed", "gap_closed")):
        assert cells[label][0].startswith(f"{numbers[f'base/{key}']:.3f}")
        low, high = (numbers[f"val/{key}_{end}"] for end in ("low", "high"))
        assert cells[label][1] == f"{numbers[f'val/{key}']:.3f} [{low:.2f}, {high:.2f}]"
    assert "Measured on 2 held-out prompts" in card.text


def test_its_metadata_are_valid(lora: Path, command: Command, tmp_path: Path) -> None:
    card = card_of(command, lora, tmp_path / "mine")
    data = ModelCardData(**{key: value for key, value in card.data.to_dict().items() if key != "model-index"})
    assert data.license == "other" and data.license_name == "home-made" and data.license_link == "https://x/licence"
    assert card.data.model_name == "mine" and card.data.library_name == "transformers"
    assert card.data.base_model is None, "a folder has no name on the hub"


def test_it_says_what_was_trained(lora: Path, command: Command, tmp_path: Path) -> None:
    text = card_of(command, lora, tmp_path / "mine").text
    assert "temperature 0.7, licence other" in text
    assert "regex: a regular expression, `oracle.pattern=[a-z]`" in text
    assert "DiNADO-Merge (Lu et al., ICML 2024)" in text and "16 rollouts a prompt of at most 8 tokens" in text
    assert "| `optim.lr` | `0.05` |" in text and "network.layers" not in text
    told = dict(settings_that_matter(loader.from_run_folder(lora).config))
    assert told["lora.r"] == "2" and "network.layers" not in told and "runs" not in told
    assert "softmax(logits / 0.7)" in text and "Requests go through the chat template, with the system message" in text


def test_the_settings_beside_it_train_the_run_again(lora: Path, command: Command, tmp_path: Path) -> None:
    text = card_of(command, lora, tmp_path / "mine").text
    assert "    python train.py training.yaml " in text
    again = loader.load(str(tmp_path / "mine" / "training.yaml")).config
    assert again == loader.from_run_folder(lora).config


@pytest.mark.parametrize(("kind", "which"), [("merged", "lora"), ("adapter", "lora"), ("controlled", "network")])
def test_its_program_runs(
    kind: str,
    which: str,
    command: Command,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = request.getfixturevalue(which)
    text = card_of(command, run, tmp_path / "mine", "--as", kind).text
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, "README.md", "exec"), {"__name__": "card"})
    assert out.getvalue().strip(), "it has printed a text"
    assert ("dinado" in program) == (kind == "controlled")


def test_weights_that_were_not_measured_have_no_numbers(lora: Path, command: Command, tmp_path: Path) -> None:
    (lora / "STATUS").rename(tmp_path / "STATUS")
    try:
        card = card_of(command, lora, tmp_path / "mine")
    finally:
        (tmp_path / "STATUS").rename(lora / "STATUS")
    assert "were not measured" in card.text and card.data.eval_results is None


def test_where_bases_come_from(tmp_path: Path) -> None:
    assert origin_of(smollm2.NAME) == Origin("HuggingFaceTB/SmolLM2-135M-Instruct", {"license": "apache-2.0"})
    assert origin_of(str(tmp_path)) == Origin()
    (tmp_path / "README.md").write_text("# No metadata\n")
    assert origin_of(str(tmp_path)) == Origin()
    assert origin_of("nobody/nothing") == Origin("nobody/nothing"), "no card can be had: the licence stays unknown"
