"""Predicted R along the samples that are shown: what a run leaves for compare.py's page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from commands import Command
from helpers import exact_gpt2_words

import train
from dinado.evaluation.judged_samples import pieces
from dinado.objectives.weights import smoothed_root


class Characters:
    """A decoder of bytes, as byte-level tokenizers have."""

    def decode(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token).decode("utf-8", errors="replace").strip()


def test_pieces_are_what_each_token_adds() -> None:
    assert pieces(Characters(), [97, 32, 98, 0]) == ["a", "", " b", ""]  # type: ignore[arg-type]
    split = list("é!".encode())
    assert pieces(Characters(), split) == ["", "é", "!"], "a character appears when it is whole"  # type: ignore[arg-type]
    assert pieces(Characters(), []) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("words", ["method=dinado_merge targets.root=store lora.r=2", "method=nado"])
def test_the_shown_samples_carry_r(command: Command, tmp_path: Path, words: str) -> None:
    result = command(train, "exact_world", *exact_gpt2_words(tmp_path, *words.split()), "--json")
    assert result.code == 0, result.err
    for name in ("before", "after"):
        lines = (Path(result.json["run_dir"]) / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == 32 and [i for i, row in enumerate(rows) if "r" in row] == [0], "one prompt, its first text"
        assert "".join(rows[0]["tokens"]) == rows[0]["text"] and len(rows[0]["r"]) == len(rows[0]["tokens"])
        assert all(0 <= r <= 1 for r in rows[0]["r"])


@pytest.mark.parametrize("parameters", ["lora", "full"])
def test_r_of_a_policy_telescopes_with_its_ratios(command: Command, tmp_path: Path, parameters: str) -> None:
    words = ["method=dinado_hard", f"parameters={parameters}", "targets.root=store"]
    result = command(train, "exact_world", *exact_gpt2_words(tmp_path, *words), "--json")
    assert result.code == 0, result.err
    before, after = (
        [json.loads(line) for line in (Path(result.json["run_dir"]) / "samples" / f"{name}.jsonl").open()]
        for name in ("before", "after")
    )
    root = float(smoothed_root(torch.tensor([row["score"] for row in before])))
    expected = min(1.0, root * math.exp(after[0]["log_q"] - after[0]["log_p"]))
    assert after[0]["r"][-1] == pytest.approx(expected, abs=1e-3)


def test_a_method_that_predicts_no_r_shows_none(command: Command, tmp_path: Path) -> None:
    result = command(train, "exact_world", *exact_gpt2_words(tmp_path, "method=sft"), "--json")
    assert result.code == 0, result.err
    texts = (Path(result.json["run_dir"]) / "samples" / "after.jsonl").read_text(encoding="utf-8")
    assert not any("r" in json.loads(line) for line in texts.splitlines())
    absent = ("val/r_", "reg/", "norm/log_beta", "train/oracle_ce", "train/path", "train/lookahead")
    assert not [name for name in result.json if name.startswith(absent)]
    assert {"train/loss", "norm/log_ratio_max", "val/kl_to_optimum", "norm/adapter_fro"} <= set(result.json)
