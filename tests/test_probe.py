"""A look at an oracle before training: what is counted, what is advised, and the experiment for a user's own."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from commands import Command
from helpers import tiny_llama

import train
from dinado.bases.markov import build_word_tokenizer
from dinado.evaluation.advice import MOST_PER_PROMPT, WANTED, advise

CASE = {"truncated": 0.0, "max_new_tokens": 64, "num_prompts": 100, "per_prompt": 16, "batch_size": 32}


def test_a_common_oracle_needs_nothing() -> None:
    assert advise(success=0.3, **CASE).settings == []  # type: ignore[arg-type]


def test_texts_that_are_cut_off_get_twice_the_budget() -> None:
    advice = advise(success=0.3, **CASE | {"truncated": 0.7})  # type: ignore[arg-type]
    assert advice.settings == ["rollouts.max_new_tokens=128"] and "70% of the texts were cut off" in advice.reasons[0]


def test_enough_rollouts_for_the_accepted_ones_that_are_wanted() -> None:
    (setting,) = advise(success=0.05, **CASE).settings  # type: ignore[arg-type]
    assert setting == f"rollouts.per_prompt={WANTED // 5}"
    (most,) = advise(success=0.05, **CASE | {"num_prompts": 10}).settings  # type: ignore[arg-type]
    assert most == f"rollouts.per_prompt={MOST_PER_PROMPT}"


@pytest.mark.parametrize("success", [0.0, 0.01])
def test_rare_oracles_get_rounds(success: float) -> None:
    advice = advise(success=success, **CASE)  # type: ignore[arg-type]
    assert {"rollouts.rounds=4", "targets.weights=balance"} <= set(advice.settings)
    assert (success == 0.0) == any("no text was accepted" in reason for reason in advice.reasons)


def test_an_oracle_that_nearly_always_accepts_is_said_to_teach_little() -> None:
    assert "little to learn" in advise(success=0.95, **CASE).reasons[0]  # type: ignore[arg-type]


def test_a_batch_that_the_prompts_cannot_fill() -> None:
    advice = advise(success=0.5, **CASE | {"num_prompts": 1, "per_prompt": 4, "batch_size": 500})  # type: ignore[arg-type]
    assert advice.settings == ["rollouts.per_prompt=64", "optim.batch_size=32"]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    tiny_llama(12).save_pretrained(tmp_path / "model")
    build_word_tokenizer(12).save_pretrained(tmp_path / "model")
    prompts = [f'{{"prompt": "{i} {j}"}}\n' for i in range(1, 8) for j in range(1, 8)]
    (tmp_path / "prompts.jsonl").write_text("".join(prompts))
    (tmp_path / "probed_oracles.py").write_text(
        "def has_two(prompts, texts):\n    return ['2' in text.split() for text in texts]\n"
        "def never(prompts, texts):\n    return [False for _ in texts]\n"
        "def markup(prompts, texts):\n    raise ValueError('[/bold]')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return [
        "task.path=prompts.jsonl",
        "oracle.function=probed_oracles:has_two",
        "base.name=model",
        "data.val_prompts=4",
        "rollouts.max_new_tokens=12",
        "trainer.accelerator=cpu",
        "trainer.progress=false",
    ]


def test_a_probe_trains_nothing_and_its_command_trains(command: Command, words: list[str], tmp_path: Path) -> None:
    result = command(train, "own", *words, "--probe")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("64 texts of model for 16 of 45 prompts: success ")
    assert sum(line.startswith(("  1.00  ", "  0.00  ")) for line in lines) == 5
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache" / "rollouts").exists()
    advised = shlex.split(lines[-1])
    assert advised[:3] == ["python", "train.py", "own"] and set(words) & set(advised)
    small = [
        "eval.samples_per_prompt=2",
        "eval.rollouts_per_prompt=4",
        "eval.max_rollouts=8",
        "eval.best_of=0",
        "optim.steps=2",
        "lora.r=2",
    ]
    trained = command(train, *advised[2:], *small, "rollouts.truncated=score")
    assert trained.code == 0, trained.err


def test_a_probe_in_numbers(command: Command, words: list[str]) -> None:
    first = command(train, "own", *words, "--probe", "--json").json
    again = command(train, "own", *words, "--probe", "--json").json
    assert first == again and 0 < first["probe/success_low"] < first["probe/success"] < first["probe/success_high"] < 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["oracle.function=probed_oracles:never", "--probe"], ""),
        (["oracle.function=probed_oracles:markup", "--probe"], "ValueError: [/bold]"),
        (["--probe", "--resume", "runs/own/x"], "no run at"),
        (["oracle.function=null"], "oracle.name=user needs an importable module:callable"),
        (["task.path=null"], "needs task.path, a file of prompts"),
    ],
)
def test_what_can_go_wrong(command: Command, words: list[str], more: list[str], says: str) -> None:
    experiment = [] if "--resume" in more else ["own"]
    result = command(train, *experiment, *words, *more)
    if not says:
        assert result.code == 0 and "no text was accepted: check the oracle" in result.out
        return
    assert result.code == 2 and says in result.err.splitlines()[-1]
