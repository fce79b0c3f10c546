"""``generate.py RUN --explain``: numbers in records, and blocks in a terminal."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from explained_case import BLOCK, Elements
from helpers import exact_gpt2_words
from small_run import save_prompts

import generate
import train
from dinado.batch import RolloutBatch
from dinado.prompt import Prompt
from engine.restoring import restore_method
from workbench import cli
from workbench.plain_console import PlainConsole
from workbench.report.explained_view import print_explained, visible

METHODS = {
    "nado": "method=nado",
    "soft": "method=dinado_soft objective.norm.kind=mean",
    "merge": "method=dinado_merge lora.r=2",
    "full merge": "method=dinado_merge parameters=full",
    "hard": "method=dinado_hard parameters=lora lora.r=2 targets.root=learned",
    "hard, stored root": "method=dinado_hard parameters=network targets.root=store",
    "soft, stored root": "method=dinado_soft targets.root=store",
    "sft": "method=sft lora.r=2",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run of each method, of six steps with large ones."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    with pytest.MonkeyPatch.context() as patch:
        for number, (name, words) in enumerate(METHODS.items()):
            patch.setenv("WANDB_RUN_ID", f"run{number}")
            given = exact_gpt2_words(folder, "optim.lr=0.02", *words.split())
            assert cli.run(train.main, "", train.OPTIONS, True, ["exact_world", *given]) == 0
            found[name] = str(folder / "runs" / "exact_world" / f"run{number}")
    return found


def blocks(command: Command, run: str, *words: str) -> list[dict[str, Any]]:
    result = command(generate, run, "--explain", "--json", *words)
    assert result.code == 0, result.err
    return [record["explained"] for record in result.json["texts"]]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_knows(name: str, runs: dict[str, str], command: Command) -> None:
    found = blocks(command, runs[name], "--prompt", "3 1", "--num", "4")
    assert len(found) == 4
    knows_r = name not in ("sft", "hard, stored root", "soft, stored root")
    for block in found:
        count = len(block["tokens"])
        assert ("r" in block, "r_prompt" in block) == (knows_r, knows_r)
        assert ("r_over_r_prompt" in block) == (name == "hard, stored root")
        assert ("log_beta" in block) == (name in ("soft", "merge", "full merge"))
        for key, column in block.items():
            assert key == "r_prompt" or len(column) == count, key
        for p, q in zip(block["likeliest_p"], block["likeliest_q"], strict=True):
            assert len(p) == len(q) == 5 and sum(one[1] for one in p) == pytest.approx(1, abs=1e-3)
    assert any(abs(q - p) > 0.01 for block in found for p, q in zip(block["log_p"], block["log_q"], strict=True))


@pytest.mark.parametrize("name", ["nado", "soft", "merge", "full merge", "hard"])
def test_r_and_norm_are_those_of_the_method(name: str, runs: dict[str, str], command: Command) -> None:
    """Each text alone, without padding, from the method's own terms."""
    words = ["--prompt", "3 1", "--num", "6", "--max-new-tokens", "4"]
    texts = command(generate, runs[name], "--explain", "--json", *words).json["texts"]
    method: Any = restore_method(runs[name])
    base = method.base
    ids_PS, mask_PS = base.encode_prompts([Prompt("0", "3 1")])
    for record in texts:
        block = record["explained"]
        tokens = base.tokenizer(record["text"])["input_ids"] if record["text"] else []
        tokens = tokens + [0] * (len(block["tokens"]) - len(tokens))
        batch = RolloutBatch.unjudged(ids_PS, mask_PS, [0], [tokens])
        with torch.no_grad():
            with base.adapters(on=False):
                batch.log_p_BT = base.log_probs(batch)
            terms = method.terms(batch)
            assert block["log_p"] == pytest.approx(batch.log_p_BT[0].tolist(), abs=1e-3)
            assert block["log_q"] == pytest.approx(terms.held_out.log_q_BT[0].tolist(), abs=1e-3)
            assert block["r"] == pytest.approx(terms.log_r_BT[0].clamp(max=0).exp().tolist(), abs=1e-3)
            if "log_beta" in block:
                log_beta_T = method.norm(terms.details.scored, batch)[0]
                assert block["log_beta"] == pytest.approx(log_beta_T.tolist(), abs=1e-3)
        if name == "hard":
            end = block["r_prompt"] * math.exp(sum(block["log_q"]) - sum(block["log_p"]))
            assert block["r"][-1] == pytest.approx(min(end, 1.0), abs=2e-3)


def test_with_exact_the_root_is_estimated(runs: dict[str, str], command: Command) -> None:
    words = [runs["hard, stored root"], "--prompt", "3 1", "--num", "8", "--exact", "8", "--explain", "--json"]
    records = command(generate, *words).json["texts"]
    accepted = [record for record in records if record["accepted"]]
    assert accepted
    for record in accepted:
        block = record["explained"]
        assert block["r_prompt"] == pytest.approx(min(1.0, math.exp(record["log_z"])), abs=1e-3)
        assert "".join(block["tokens"]) == record["text"], "the chosen text is the one that is explained"


def test_a_text_that_is_left_empty(runs: dict[str, str], command: Command) -> None:
    words = ["--prompt", "3 1", "--num", "12", "--exact", "1", "--verify", "--max-new-tokens", "1"]
    records = command(generate, runs["nado"], "--explain", "--json", *words).json["texts"]
    empty = [record for record in records if not record["accepted"]]
    assert empty and all(record["text"] == "" and record["explained"] is None for record in empty)
    assert "(no text)" in command(generate, runs["nado"], "--explain", *words).out


def test_strength_and_beams(runs: dict[str, str], command: Command) -> None:
    for block in blocks(command, runs["merge"], "--prompt", "3 1", "--alpha", "0", "--num", "2"):
        assert block["kl"] == pytest.approx([0] * len(block["kl"]), abs=1e-4) and not any(block["changed"])
    for block in blocks(command, runs["nado"], "--prompt", "3 1", "--mode", "beam", "--num", "5"):
        # The end of text is the last token: what pads a shorter beam is none of its own.
        assert "" not in block["tokens"][:-1]


def test_a_file_holds_the_numbers_and_goes_on_with_them(runs: dict[str, str], command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = [runs["soft"], "--prompt", "3 1", "--num", "2", "--output", str(out)]
    assert command(generate, *words, "--explain").code == 0
    assert [sorted(json.loads(line)) for line in out.read_text().splitlines()] == [["explained", "prompt", "text"]] * 2


# A terminal


def test_a_terminal_without_colour(runs: dict[str, str], command: Command) -> None:
    out = command(generate, runs["merge"], "--prompt", "3 1", "--explain").out
    assert "\x1b" not in out and "▲ likelier by control" in out
    assert "R is predicted" in out and "likeliest of q" in out and "log beta" in out
    assert "predicts no R" in (said := command(generate, runs["sft"], "--prompt", "3 1", "--explain").out)
    assert "log beta" not in said and " R " not in said.split("likeliest of p")[0].splitlines()[-1]
    said = command(generate, runs["soft, stored root"], "--prompt", "3 1", "--explain").out
    assert "R is not shown: this run takes R(c) from rollouts" in said


@pytest.mark.parametrize("coloured", [True, False])
def test_a_block(coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    console = PlainConsole(
        force_terminal=True, color_system="256", no_color=not coloured, piped_width=200, highlight=False
    )
    with console.capture() as captured:
        print_explained(console, [{"role": "user", "content": "hi\x07"}], BLOCK)
    out = captured.get()
    assert ("\x1b[1;38;5;33m" in out) == coloured and "38;5" in out if coloured else "38;5" not in out
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert "\x1b" not in plain and "\x07" not in plain
    lines = [line.rstrip() for line in plain.splitlines()]
    assert lines[0] == r"user: hi\x07" and lines[1] == r"  a\x1b[31m[b]⏎"
    assert (
        "log q - log p +0.50 nats, KL(q||p) along the text 0.60 nats" in lines[2]
        and "R 0.10 before it, 0.90 at its end" in lines[2]
    )
    rows = lines[4:8]
    assert rows[0].startswith("▲≠  a ") and "0.368  0.905" in rows[0] and "x 0.50  ' ' 0.30" in rows[0]
    assert rows[2].startswith("▼") and "⏎" in rows[2] and "∎" in rows[3]


def test_what_is_visible() -> None:
    assert visible("é \t\x00\u202e") == r"é \t\x00\u202e"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--html", "x.html"], "--html belongs to --explain"),
        (["--explain", "--html", "/nowhere/x.html"], "cannot write /nowhere/x.html"),
        (["--explain", "--html", "x.html", "--output", "x", "--continue"], "leave out --continue"),
    ],
)
def test_mistakes(runs: dict[str, str], command: Command, words: list[str], says: str) -> None:
    assert says in command(generate, runs["sft"], "--prompt", "1", *words).error


def test_a_run_writes_its_page(runs: dict[str, str], command: Command, tmp_path: Path) -> None:
    file, source = tmp_path / "page.html", save_prompts(tmp_path / "in.jsonl", ["3 1", {"prompt": "2", "text": "own"}])
    result = command(generate, runs["hard"], "--input", str(source), "--explain", "--html", str(file))
    assert result.code == 0 and "likeliest of p" in result.out
    html = file.read_text(encoding="utf-8")
    assert Elements(html).open == [] and "dinado_hard, run run4" in html and html.count("<article") == 2
