"""The sample-efficiency study: its runs load, its numbers follow from them, and a stopped one goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import sample_efficiency
from benchmarks.sample_efficiency import ONE_SHOT, PREDICT_R, ROUNDS, Results, all_cases, geometric, quick_cases
from workbench.settings import loader


def test_every_run_is_a_valid_command() -> None:
    for case in {(c.method, c.scheme): c for c in [*all_cases(), *quick_cases()]}.values():
        config = loader.load(sample_efficiency.EXPERIMENT, case.words).config
        assert config.optim.steps == 800 and config.rollouts.per_prompt == case.budget
        assert (config.rollouts.rounds > 1) == ("rounds" in case.scheme)
    one, rounds = (
        loader.load(sample_efficiency.EXPERIMENT, quick_cases()[0]._replace(scheme=scheme).words).config
        for scheme in (ONE_SHOT, ROUNDS)
    )
    assert one.objective == rounds.objective and one.optim == rounds.optim and one.network == rounds.network


@pytest.mark.slow
def test_numbers_follow_from_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With runs that are looked up: rounds come to a quarter of one shot's distance, times the world's own."""
    asked = []

    def lookup(words: list[str], out: Path, experiment: str) -> dict[str, float]:
        asked.append(words)
        if len(asked) == 5:
            raise RuntimeError("killed")
        once = "rollouts.rounds=1" in words
        seed = int(next(word for word in words if word.startswith("task.seed")).split("=")[1])
        kl = (1 + seed) * (1.0 if once else 0.25)
        return {"val/kl_to_optimum": kl, "val/gap_closed": 1 - kl / 10, "seconds": 1.0}

    monkeypatch.setattr(sample_efficiency, "run", lookup)
    monkeypatch.setattr("sys.argv", ["x", "--quick", "--json", "--jobs", "1", "--out", str(tmp_path)])
    with pytest.raises(RuntimeError):
        sample_efficiency.main()
    kept = len((tmp_path / "results.jsonl").read_text().splitlines())
    before = len(asked)
    assert sample_efficiency.main() == 0
    assert len(asked) - before == len(quick_cases()) - kept, "finished runs are not repeated"
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = [method.removeprefix("dinado_") for method in PREDICT_R]
    assert found.keys() == {*(f"kl_ratio_{n}" for n in names), *(f"gap_closed_rarity3_{n}" for n in names)}
    assert [found[f"kl_ratio_{n}"] for n in names] == pytest.approx([0.25] * 4)
    assert [found[f"gap_closed_rarity3_{n}"] for n in names] == pytest.approx([1 - 0.05] * 4)


@pytest.mark.slow
def test_the_picture_shows_every_world(tmp_path: Path) -> None:
    cases = [case for case in all_cases() if case.budget == 8000 and case.scheme in (ONE_SHOT, ROUNDS)]
    assert len(cases) == 2 * 5 * 4 * 2
    rows = [{"key": case.key, "val/kl_to_optimum": 0.1 + case.seed} for case in cases]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample_efficiency.draw(Results(tmp_path), cases, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert drawn.count("<use ") >= len(cases)
    sample_efficiency.draw(Results(tmp_path), cases, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn, "the same picture every time"


def test_geometric_means() -> None:
    assert geometric([1.0, 4.0])[0] == pytest.approx(2)
    mean, low, high = geometric([0.1, 0.2, 0.4])
    assert mean == pytest.approx(0.2) and low < mean < high
    assert mean / low == pytest.approx(high / mean)
    assert math.isnan(geometric([3.0])[1])
