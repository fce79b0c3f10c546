"""The report on the variants, on made-up runs whose numbers can be said beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_case import make_run

from benchmarks import variants_report as report
from workbench.report.run_reader import Run


def run(method: str, seed: int, rollouts: int, kl: float, terms: list[float]) -> Run:
    settings = {
        "method": method,
        "seed": str(seed),
        "rollouts.seed": "0",
        "rollouts.per_prompt": str(rollouts),
    }
    steps = [
        {"step": step, report.TERM: value, **({report.KL: kl + 8 - step} if step % 4 == 3 else {})}
        for step, value in enumerate(terms)
    ]
    # The closing record has held-out numbers under the same names, which are no point of the curve.
    return Run(Path(), settings, [*steps, {"step": len(terms), report.TERM: 99.0, report.KL: kl}])


def runs(rollouts: int, kl: float) -> list[Run]:
    rising, falling = [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.6, 0.8], [0.8, 0.6, 0.4, 0.4, 0.4, 0.3, 0.2, 0.1]
    return [
        run(method, seed, rollouts, kl + seed, rising if method == "nado" else falling)
        for method in report.PREDICT_R
        for seed in range(2)
    ]


def cells(table: str, method: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {method} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_term_is_that_of_training() -> None:
    groups = {method: report.of(runs(8000, 1.0), method, {}) for method in report.PREDICT_R}
    table = report.term(groups)
    assert cells(table, "NADO") == ["0.15", "0.7", "0.8", "2 of 2", "0.75"]
    rounding = [run("nado", 0, 8000, 1.0, [1e-9 * step for step in range(8)])]
    assert cells(report.term({"nado": rounding}), "NADO") == ["0", "0", "0", "0 of 1", "1.00"]
    assert cells(table, "DiNADO-Merge") == ["0.7", "0.15", "0.8", "0 of 2", "0.75"]


def test_what_rollouts_and_steps_are_worth() -> None:
    everything = [*runs(500, 3.0), *runs(8000, 1.0)]
    few, many = cells(report.by_rollouts(everything), "DiNADO-Hard")
    assert few.startswith("3.5 [") and many.startswith("1.5 [")
    groups = {method: report.of(runs(8000, 1.0), method, {}) for method in report.PREDICT_R}
    assert cells(report.by_steps(groups), "DiNADO-Soft") == ["6.5", "2.5"], "means over seeds after 4 and after 8"
    assert cells(report.outcomes(groups), "NADO")[0] == "2"


@pytest.mark.parametrize(("method", "name"), [("nado", "NADO"), ("dinado_hard", "DiNADO-Hard")])
def test_names_are_those_of_the_papers(method: str, name: str) -> None:
    assert report.name(method) == name


def test_the_picture_has_a_line_for_each_method(tmp_path: Path) -> None:
    found = {report.EXACT: [*runs(500, 3.0), *runs(8000, 1.0)], report.OURS: runs(12, 1.0)}
    report.draw(found, tmp_path / "variants.svg")
    text = (tmp_path / "variants.svg").read_text()
    assert all(colour in text for colour, _ in report.STYLES.values())


def test_finished_sweeps_are_read_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in report.PREDICT_R:
        words = (f"method={method}", "rollouts.per_prompt=8000")
        make_run(tmp_path / report.EXACT.sweep, method, *words, success=0.9, kl=0.25)
    make_run(tmp_path / report.EXACT.sweep, "unfinished", "method=nado", status="running", kl=9.0)
    monkeypatch.setattr("sys.argv", ["variants_report.py", "--quick", "--sweeps", str(tmp_path)])
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a sweep was started"))
    assert report.main() == 0
    assert cells(capsys.readouterr().out.split("\n\n")[1], "NADO")[0] == "1"
