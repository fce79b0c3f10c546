"""Fields of the user's that have a name with a meaning here, and held-out prompts that share their text."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from small_run import SIX, save_base, save_prompts, small_words

import train
from dinado.errors import OracleError
from dinado.evaluation.judged_samples import JudgedSamples
from dinado.evaluation.result_rows import row_of
from dinado.oracles import LengthOracle, LexicalOracle
from dinado.prompt import Prompt
from lightning_modules.diagnostics import RolloutDiagnostics

WANTED = """
def wanted(prompts, texts):
    return [float(bool(prompt.data["wanted"]) or "e" in text) for prompt, text in zip(prompts, texts)]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def samples_of(*data: dict[str, Any]) -> JudgedSamples:
    prompts = [Prompt(str(index), "", one) for index, one in enumerate(data)]
    n = len(prompts)
    return JudgedSamples(prompts, ["a dog"] * n, [True] * n, [1.0] * n, [0.0] * n, [0.0] * n, [2] * n, [[1]] * n, [[]])


@pytest.mark.parametrize("value", [3, 1.5, True, {"a": 1}, [1, 2], ["dog", 1], [["dog"]], None, [], "", ["!!!"], "?"])
def test_a_field_that_only_has_the_name_is_left_alone(value: Any) -> None:
    row = row_of(samples_of({"concepts": value}, {"concepts": ["dog"]}), with_text_metrics=False)
    assert "val/coverage" not in row and row["val/success"] == 1.0
    with pytest.raises(OracleError, match=r"prompt 'p'.*`concepts`"):
        LexicalOracle()([Prompt("p", "", {"concepts": value})], ["dog"])
    with pytest.raises(OracleError, match="prompt 'p'"):
        (LengthOracle(1) & ~LexicalOracle()).check_prompts([Prompt("p", "", {"concepts": value})])


def test_a_word_is_a_list_of_it() -> None:
    prompt = Prompt("p", "", {"concepts": "dog"})
    assert LexicalOracle()([prompt] * 2, ["the dogs", "d o g"]).tolist() == [1, 0]
    assert LexicalOracle("dog").words == ("dog",) and LexicalOracle("dog").found(prompt, "a dog") == [True]
    row = row_of(samples_of({"concepts": "dog"}, {"concepts": ["dog", "cat"]}), with_text_metrics=False)
    assert row["val/coverage"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("value", [3, {"a": 1}, None])
def test_a_run_with_a_field_of_that_name(
    base: Path, tmp_path: Path, command: Command, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    save_prompts(tmp_path / "prompts.jsonl", [{"prompt": text, "concepts": value} for text in SIX])
    result = command(train, *small_words(tmp_path, f"base.name={base}", "optim.steps=1"), "--json")
    assert result.code == 0, result.err


def test_held_out_prompts_of_one_text_are_kept_apart(
    base: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    rows = [{"prompt": text, "wanted": 0} for text in SIX] + [{"prompt": "Same.", "wanted": i} for i in range(4)]
    save_prompts(tmp_path / "prompts.jsonl", rows)
    (tmp_path / "mine.py").write_text(WANTED)
    seen: list[int] = []
    plain = RolloutDiagnostics.compute

    def compute(self: RolloutDiagnostics) -> dict[str, float]:
        seen.append(len(self._gathered()))
        return plain(self)

    monkeypatch.setattr(RolloutDiagnostics, "compute", compute)
    words = small_words(tmp_path, f"base.name={base}", "oracle.function=mine:wanted", "data.val_prompts=4")
    result = command(train, *words, "optim.steps=1", "--json")
    assert result.code == 0, result.err
    assert set(seen) == {4} and math.isfinite(result.json["val/kl_to_optimum"])
