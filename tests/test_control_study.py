"""The table of the control study: what is paired with what, and bad arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import control_study  # noqa: E402


def run(row: str, seed: int, success: list[float]) -> dict:
    metrics = {"val/success": sum(success) / len(success), "base/success": 0.2, "best_of_n/success": 0.7}
    return {"row": row, "seed": seed, "metrics": metrics, "success_by_prompt": success}


def test_differences_are_taken_prompt_by_prompt_over_common_seeds() -> None:
    runs = [
        run(control_study.BASELINE, 0, [0.1, 0.5, 0.9]),
        run(control_study.BASELINE, 1, [0.3, 0.5, 0.7]),
        run("dinado_hard", 0, [0.2, 0.6, 1.0]),
        run("dinado_hard", 1, [0.4, 0.6, 0.8]),
        run("dinado_hard", 2, [1.0, 1.0, 1.0]),  # the baseline has no such seed
        run("nado", 7, [1.0, 1.0, 1.0]),
    ]
    # The same difference at every prompt: no width, however different the prompts are.
    assert control_study.success_over(runs, "dinado_hard") == "+0.100 [+0.100, +0.100]"
    assert control_study.success_over(runs, "nado") == control_study.success_over(runs, control_study.BASELINE) == ""
    rows = {line.split(" | ")[0]: line for line in control_study.table(runs).splitlines()}
    assert "0.500 ± 0.000" in rows[f"| {control_study.BASELINE}"]
    assert " 0.200 " in rows["| base"] and " 0.700 " in rows["| best of n"]


def measured(row: str, seed: int, log_ratio: list[float], success: float, cost: float) -> dict:
    """A run whose held-out prompts have -log R of 2 each, and a base that obeys in 1 of 8 of its texts."""
    gap = -sum(log_ratio) / (2.0 * len(log_ratio))
    metrics = {"val/success": success, "val/kl_from_base": cost, "val/gap_closed": gap}
    return {
        "row": row,
        "seed": seed,
        "metrics": metrics,
        "base_by_prompt": [[2, 16]] * len(log_ratio),
        "held_out": [[value, 2.0, 1.0] for value in log_ratio],
    }


def test_the_summary_is_of_the_method_that_closes_most() -> None:
    runs = [
        measured(control_study.BASELINE, 0, [-0.4, -0.6, -0.2, -0.4], 0.5, 1.0),
        measured("nado", 0, [-0.2, -0.2, -0.2, -0.2], 0.3, 0.5),
        measured("dinado_hard", 0, [-0.8, -1.0, -0.6, -0.8], 0.5, 0.9),
        measured("dinado_hard", 1, [-1.2, -1.0, -0.6, -0.8], 0.5, 0.9),
    ]
    found = control_study.summary(runs)
    assert (found["best"], found["seeds"], found["success"]) == ("dinado_hard", 2, 0.5)
    assert found["gap_closed"] == pytest.approx((0.4 + 0.45) / 2)
    assert found["sft_gap_closed"] == pytest.approx(0.2)
    # The same difference of 0.4 nats at every prompt of the common seed, of a gap of 2 nats.
    assert (found["gap_over_sft"], found["gap_over_sft_low"]) == (pytest.approx(0.2), pytest.approx(0.2))
    points = control_study.frontier([[2, 16]] * 4)
    assert found["frontier_ratio"] == pytest.approx(0.9 / control_study.kl_at(points, 0.5))
    assert control_study.summary(runs[:1]) == {}
    alone = control_study.summary([measured("nado", 0, [-0.2, -0.2], 0.99, 0.5)])
    assert alone["frontier_ratio"] is None or alone["frontier_ratio"] > 0


def test_a_table_of_nothing() -> None:
    assert len(control_study.table([]).splitlines()) == 2


@pytest.mark.parametrize(("text", "expected"), [("3", [0, 1, 2]), ("0,2", [0, 2]), ("1,", [1])])
def test_seeds(text: str, expected: list[int]) -> None:
    assert control_study.seeds(text) == expected


def test_a_run_is_known_by_what_decides_its_outcome() -> None:
    digest = control_study.digest_of_settings
    usual = digest("method=dinado_hard")
    assert usual == digest("method=dinado_hard trainer.checkpoint_every=7 data.cache=elsewhere")
    for other in (
        "method=dinado_merge",
        "method=dinado_hard objective.lookahead.sharpness=3",
        "method=dinado_hard optim.lr=1",
    ):
        assert digest(other) != usual


def test_the_results_in_the_docs_are_of_the_experiment_as_it_is() -> None:
    assert control_study.QUICK_RESULTS.exists()
    for file, more in ((control_study.QUICK_RESULTS, control_study.QUICK), (control_study.RESULTS, "")):
        if runs := control_study.stored(file):
            entries = control_study.ENTRIES.values()
            digests = {control_study.digest_of_settings(f"{entry} {more}") for entry in entries}
            assert {run["config"] for run in runs} <= digests
            assert file.with_suffix(".md").read_text() == control_study.table(runs)


def test_every_row_can_be_asked_for() -> None:
    assert not any("," in name for name in control_study.ENTRIES)


@pytest.mark.parametrize(
    ("arguments", "problem"), [(["--only", "nonsense"], "unknown row 'nonsense'"), (["--seeds", "x"], "--seeds")]
)
def test_bad_arguments(arguments: list[str], problem: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "control_study.py"), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert problem in finished.stderr.splitlines()[-1]
