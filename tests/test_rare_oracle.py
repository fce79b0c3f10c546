"""The study of a rare oracle: its runs load, and its numbers follow from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import rare_oracle
from benchmarks.rare_oracle import ONE_SHOT, ROUNDS, SCHEMES, headline, table
from workbench.settings import loader


def run(scheme: str, seed: int, success: list[float], tokens: float = 100.0) -> dict:
    numbers = dict.fromkeys(rare_oracle.KEPT, 0.5)
    mean = sum(success) / len(success)
    numbers |= {"val/success": mean, "rollouts/tokens": tokens, "base/success": 0.01}
    return {"scheme": scheme, "seed": seed, "success_by_prompt": success, **numbers}


def test_both_sides_differ_in_what_is_drawn_alone() -> None:
    one, rounds = (loader.load("rare_colour", rare_oracle.words_of(scheme, 2)).config for scheme in SCHEMES)
    assert (one.rollouts.rounds, one.targets.weights) == (1, "uniform")
    assert rounds.rollouts.rounds > 1 and rounds.targets.weights == "balance"
    assert one.rollouts.per_prompt == rounds.rollouts.per_prompt and one.optim == rounds.optim
    assert one.objective == rounds.objective and one.seed == one.rollouts.seed == 2


def test_ratios_are_taken_over_common_seeds() -> None:
    runs = [
        run(ONE_SHOT, 0, [0.0, 0.2, 0.1]),
        run(ONE_SHOT, 1, [0.2, 0.0, 0.1]),
        run(ROUNDS, 0, [0.3, 0.3, 0.3], tokens=90),
        run(ROUNDS, 1, [0.1, 0.3, 0.2], tokens=90),
        run(ROUNDS, 2, [1.0, 1.0, 1.0]),
    ]
    found = headline(runs)
    assert found["success_ratio"] == pytest.approx(2.5) and found["seeds"] == 2
    assert found["success_ratio_low"] <= 2.5 <= found["success_ratio_high"]
    assert found["success_ratio_lowest_seed"] == pytest.approx(2) and found["token_ratio"] == pytest.approx(0.9)
    assert headline(runs[:2]) == {}
    rows = {line.split(" | ")[0]: line for line in table(runs).splitlines()}
    assert "0.100, 0.100" in rows[f"| {ONE_SHOT}"] and "| 3 |" in rows[f"| {ROUNDS}"]


def test_finished_runs_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def look_up(scheme: str, seed: int) -> dict:
        asked.append((scheme, seed))
        return run(scheme, seed, [0.1, 0.2]) | {"key": rare_oracle.key_of(scheme, seed)}

    monkeypatch.setattr(rare_oracle, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(rare_oracle, "run_one", look_up)
    assert len(rare_oracle.fill([0])) == 2 and len(rare_oracle.fill([0, 1])) == 4
    assert len(asked) == 4
    assert (tmp_path / "results.md").read_text() == table(rare_oracle.stored())


def test_what_is_kept_comes_from_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rare_oracle, "ROOT", tmp_path)
    (tmp_path / "run" / "samples").mkdir(parents=True)
    lines = [{"prompt": prompt, "score": score} for prompt, score in (("a", 1), ("a", 0), ("b", 0), ("b", 0))]
    (tmp_path / "run" / "samples" / "after.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = dict.fromkeys(rare_oracle.KEPT, 0.25) | {"run_dir": "run", "val/other": 1.0}
    found = rare_oracle.outcome(ROUNDS, 1, metrics, 2.34)
    assert found["success_by_prompt"] == [0.5, 0.0] and found["minutes"] == 2.3 and "val/other" not in found
    assert found["command"] == "python train.py rare_colour seed=1 rollouts.seed=1"


def test_the_results_in_the_docs_are_those_of_the_experiment() -> None:
    runs = rare_oracle.current(rare_oracle.stored())
    assert runs and rare_oracle.RESULTS.with_suffix(".md").read_text() == table(runs)
