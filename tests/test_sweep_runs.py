"""Sweeps that run: what is repeated, resumed, given up, ranked, and what happens when something goes wrong.

Longer than 300 lines because it is about one thing: one harness of trials that are killed, stopped and resumed.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from rich.console import Console
from sweep_case import SWEEP, Sweep, alive, interrupt

from workbench.run_folder import RunFolder
from workbench.run_status import status
from workbench.sweeping import ranking
from workbench.sweeping.definition import read
from workbench.sweeping.study import Bayes
from workbench.sweeping.sweep_folder import FAILED, FINISHED, STOPPED_EARLY, Outcome, SweepFolder
from workbench.sweeping.trials import Maker, Trial
from workbench.sweeping.view import Progress, View


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def records(sweep: Sweep) -> dict[str, dict]:
    return SweepFolder(sweep.path, "val/success").records()


# The whole way, with train.py itself


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_without_repeating_what_is_finished(tmp_path):
    """Four trials in the exact world, two at a time; SIGKILL once the first has finished."""
    (tmp_path / "tiny.yaml").write_text(
        "program: train.py\nmethod: grid\nmetric: {name: val/gap_closed, goal: maximize}\n"
        'command: ["${env}", "${interpreter}", "${program}", exact_world, task.vocab_size=5, task.length=4, '
        '"task.required=[2]", rollouts.per_prompt=64, eval.rollouts_per_prompt=32, eval.samples_per_prompt=32, '
        "eval.exact_samples=50, eval.best_of=0, optim.batch_size=16, optim.rows_per_prompt=16, optim.steps=10, "
        'network.width=16, trainer.accelerator=cpu, trainer.val_every=0, trainer.checkpoint_every=2, "${args}"]\n'
        "parameters:\n  method: {values: [nado, dinado_soft]}\n  seed: {values: [0, 1]}\n"
    )
    command = [sys.executable, str(ROOT / "sweep.py"), "tiny.yaml", "--jobs", "2", "--json"]
    folder = SweepFolder(tmp_path / "runs" / "sweeps" / "tiny", "val/gap_closed")
    killed = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: FINISHED in [record["status"] for record in folder.records().values()], 120)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {name for name, record in folder.records().items() if record["status"] == FINISHED}
    written = {name: (folder.path / "logs" / f"{name}.log").read_bytes() for name in before}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert 1 <= len(before) < 4
    assert {name: (folder.path / "logs" / f"{name}.log").read_bytes() for name in before} == written
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["finished"], result["failed"]) == (4, 0)
    assert [row["finished"] for row in result["ranking"]] == [2, 2]
    assert {row["method"] for row in result["ranking"]} == {"nado", "dinado_soft"}
    runs = [Path(tmp_path / record["run"]) for record in folder.records().values()]
    assert [status(run) for run in runs] == [FINISHED] * 4
    for run in runs:  # one that went on has every step once
        steps = [record["step"] for record in RunFolder(run).metrics() if "perf/peak_memory_mb" in record]
        assert steps == sorted(set(steps)) and steps[-1] == 10


# With trials that only pretend


def test_failed_trials_are_listed_and_do_not_stop_the_rest(sweep: Sweep):
    sweep.write("optim.lr: {values: [1, 13, 2]}\noptim.steps: {value: 3}\n")
    code, printed = sweep.run("--json")
    assert code == 1
    assert "failed: optim.lr=13 optim.steps=3" in printed
    assert "    exit code 1" in printed and "RuntimeError: no luck" in printed
    result = json.loads(printed.splitlines()[-1])
    assert (result["finished"], result["failed"]) == (2, 1)
    assert [row["optim.lr"] for row in result["ranking"]] == [2, 1, 13]
    assert [row["mean"] for row in result["ranking"]] == [2.0, 1.0, None]
    again, _ = sweep.run()
    assert again == 1
    assert sorted(len(starts) for starts in sweep.starts().values()) == [1, 1, 2]
    tried = max(sweep.starts().values(), key=len)
    assert "--resume" not in tried[0] and "--resume" in tried[1]


def test_ctrl_c_stops_trials_gracefully_and_says_how_to_go_on(sweep: Sweep):
    sweep.write("optim.lr: {values: [1, 2, 3]}\noptim.steps: {value: 4}\n")
    process = sweep.start("--jobs", "2", PACE="0.7")
    wait_for(lambda: len([p for p in sweep.folder.glob("runs/*/*/metrics.jsonl") if p.stat().st_size]) == 2)
    code, printed = interrupt(process)
    assert code == 130 and "go on with: python sweep.py mine.yaml --jobs 2" in printed
    assert "stopping 2 trials" in printed and not alive(sweep.folder)
    assert {record["status"] for record in records(sweep).values()} == {"interrupted"}
    assert {status(run.parent) for run in sweep.folder.glob("runs/exact_world/*/STATUS")} == {"interrupted"}
    assert sweep.run("--jobs", "2")[0] == 0
    for run in sweep.folder.glob("runs/exact_world/*"):  # each step once
        assert [record["step"] for record in RunFolder(run).metrics()] == [0, 1, 2, 3]


def test_a_scheduler_s_warning_ends_with_its_own_exit_code(sweep: Sweep):
    sweep.write("optim.lr: {values: [1]}\noptim.steps: {value: 9}\n")
    process = sweep.start(PACE="0.5")
    wait_for(lambda: bool(list(sweep.folder.glob("runs/*/*/metrics.jsonl"))))
    process.terminate()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "go on with" in printed and not alive(sweep.folder)


def test_trials_end_with_the_sweep_that_is_killed(sweep: Sweep):
    sweep.write("optim.lr: {values: [1]}\noptim.steps: {value: 99}\n")
    process = sweep.start(PACE="0.5")
    wait_for(lambda: bool(list(sweep.folder.glob("runs/*/*/metrics.jsonl"))))
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(sweep.folder), 20)


def test_two_at_once_share_the_trials(sweep: Sweep):
    sweep.write("optim.lr: {values: [1, 2, 3, 4]}\noptim.steps: {value: 2}\n")
    both = [sweep.start("--json", PACE="0.3") for _ in range(2)]
    printed = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert [json.loads(text.splitlines()[-1])["finished"] for text in printed] == [4, 4]
    assert [len(starts) for starts in sweep.starts().values()] == [1, 1, 1, 1]


def test_hyperband_stops_a_trial_that_falls_behind_and_leaves_it_so(sweep: Sweep):
    head = SWEEP + "early_terminate: {type: hyperband, min_iter: 2, eta: 3}\n"
    sweep.write("optim.lr: {values: [3, 1]}\noptim.steps: {value: 12}\n", head)
    code, printed = sweep.run("--jobs", "2", PACE="0.25")
    assert code == 0, printed
    by_rate = {record["settings"]["optim.lr"]: record for record in records(sweep).values()}
    assert by_rate[3]["status"] == FINISHED and by_rate[1]["status"] == STOPPED_EARLY
    assert by_rate[1]["value"] < 1 and "0 of 1, 1 stopped" in " ".join(printed.split())
    assert status(sweep.folder / by_rate[1]["run"]) == "interrupted: SIGTERM"
    assert sweep.run()[0] == 0
    assert [len(starts) for starts in sweep.starts().values()] == [1, 1]


def test_a_metric_that_is_not_there_costs_no_second_run(sweep: Sweep):
    head = SWEEP.replace("val/success", "val/sucess")
    sweep.write("optim.lr: {values: [1, 2]}\noptim.steps: {value: 1}\n", head)
    code, printed = sweep.run()
    assert code == 1 and "it has no number called val/sucess; did you mean val/success?" in printed
    sweep.write("optim.lr: {values: [1, 2]}\noptim.steps: {value: 1}\n")
    assert sweep.run()[0] == 0
    assert [len(starts) for starts in sweep.starts().values()] == [1, 1]


def test_seeds_are_grouped_and_the_table_is_kept(sweep: Sweep):
    sweep.write("optim.lr: {values: [1, 2]}\nseed: {values: [5, 6]}\noptim.steps: {value: 1}\n")
    code, printed = sweep.run("--per", "optim.steps")
    assert code == 0 and "best of each optim.steps" in printed
    with (sweep.path / "ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["optim.lr"], row["mean"], row["trials"]) for row in rows] == [
        ("1", "2", "2.0", "2"),
        ("2", "1", "1.0", "2"),
    ]
    assert "seed" not in rows[0] and (sweep.path / "sweep.yaml").read_text() == (sweep.folder / "mine.yaml").read_text()


def test_the_environment_of_a_trial(sweep: Sweep, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("WANDB_MODE")
    trial = (sweep.folder / "trial.py").read_text()
    names = "OMP_NUM_THREADS OMP_WAIT_POLICY WANDB_MODE WANDB_RUN_ID WANDB_RUN_GROUP"
    (sweep.folder / "trial.py").write_text(f"import os; print([os.environ[n] for n in {names.split()}])\n{trial}")
    sweep.write("optim.lr: {value: 1}\noptim.steps: {value: 1}\n")
    assert sweep.run("--jobs", "1")[0] == 0
    (log,) = (sweep.path / "logs").glob("*.log")
    threads = str(len(os.sched_getaffinity(0)))
    assert str([threads, "PASSIVE", "offline", f"mine-{log.stem}", "mine"]) in log.read_text()


# Bayes


BAYES = SWEEP.replace("grid", "bayes") + (
    "parameters:\n  optim.lr: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0}\n"
    "  method: {values: [nado, dinado_soft]}\n  task.required: {values: [[1], [2]]}\n"
)


def quality(trial: Trial) -> float:
    """Best at a rate of 1e-3 with Soft."""
    return -abs(math.log10(trial.settings["optim.lr"]) + 3) - (trial.settings["method"] == "nado")


def test_bayes_learns_from_what_it_is_told_and_goes_on_where_it_was(write, tmp_path):
    pytest.importorskip("optuna")
    maker = Maker(read(write(BAYES)))
    study = Bayes(maker, 16, path=tmp_path)
    study.open()
    values = []
    for _ in range(16):
        trial = study.ask()
        assert trial is not None
        values.append(quality(trial))
        study.tell(trial, Outcome(FINISHED, values[-1]))
    assert study.ask() is None and max(values[8:]) > -0.7 and sum(values[8:]) > sum(values[:8])
    more = Bayes(maker, 18, path=tmp_path)
    more.open()
    assert len(more.all()) == 16
    left = more.ask()
    assert left is not None
    # A start that finds a trial open takes it up; one that failed counts, too.
    again = Bayes(maker, 18, path=tmp_path)
    again.open()
    assert again.ask() == left
    again.tell(left, Outcome(FAILED))
    assert again.ask() is not None and again.ask() is None


def test_bayes_runs_trials_and_keeps_its_study(sweep: Sweep):
    pytest.importorskip("optuna")
    head = SWEEP.replace("grid", "bayes")
    sweep.write("optim.lr: {distribution: log_uniform_values, min: 0.1, max: 1.0}\noptim.steps: {value: 1}\n", head)
    code, printed = sweep.run("--trials", "2", "--json")
    assert code == 0, printed
    assert json.loads(printed.splitlines()[-1])["finished"] == 2 and (sweep.path / "optuna.journal").is_file()
    code, printed = sweep.run("--trials", "3", "--jobs", "2", "--json")
    assert code == 0 and json.loads(printed.splitlines()[-1])["finished"] == 3
    assert [len(starts) for starts in sweep.starts().values()] == [1, 1, 1]


def test_bayes_hears_of_combinations_that_the_rules_refuse(write):
    pytest.importorskip("optuna")
    text = BAYES.replace("method: {values: [nado, dinado_soft]}", "task.length: {values: [1, 2, 3, 4]}")
    maker = Maker(read(write(text.replace("[[1], [2]]", "[[1], [2]]"))))
    study = Bayes(maker, 6)
    study.open()
    made = maker.make
    maker.make = lambda settings: made({**settings, "task.required": [1, 2, 3, 4, 5]})  # type: ignore[method-assign]
    assert study.ask() is None and "too short for 5 required tokens" in study.refused[0]


# Ranking and view


def trial(**settings: object) -> Trial:
    settings = {key.replace("__", "."): value for key, value in settings.items()}
    return Trial(json.dumps(settings), settings, (), Path(), 1)


def test_intervals_over_seeds_by_hand():
    mean, low, high = ranking.over_seeds([1.0, 2.0, 3.0])
    assert mean == 2 and high - mean == pytest.approx(4.303 / math.sqrt(3), rel=1e-3) and low == pytest.approx(4 - high)
    assert ranking.over_seeds([4.0])[0] == 4 and math.isnan(ranking.over_seeds([4.0])[1])
    assert all(map(math.isnan, ranking.over_seeds([])))


@pytest.mark.parametrize("maximise", [False, True])
def test_ranking_groups_seeds_and_puts_what_lacks_some_last(maximise):
    sign = 1 if maximise else -1
    trials = [trial(lr=lr, seed=seed, task__seed=world) for lr in (1, 2, 3) for world in (0, 1) for seed in (0, 1)]
    outcomes = {t.id: Outcome(FINISHED, sign * (t.settings["lr"] + t.settings["task.seed"])) for t in trials}
    outcomes[trials[-1].id] = Outcome(FAILED)
    outcomes[trials[-2].id] = Outcome(STOPPED_EARLY, 99.0)
    rows = ranking.rank(trials, outcomes, maximise)
    assert [row.settings["lr"] for row in rows] == [2, 1, 3]
    assert [(row.finished, row.trials, row.stopped) for row in rows] == [(4, 4, 0), (4, 4, 0), (2, 4, 1)]
    # Two worlds are two numbers, however many seeds each was trained with.
    assert rows[0].high - rows[0].mean == pytest.approx(ranking.over_seeds([2.0, 3.0])[2] - 2.5)
    assert ranking.rank([trial(lr=1)], {}, maximise)[0].finished == 0


def test_the_best_of_each():
    trials = [trial(method=method, lr=lr) for method in "ab" for lr in (1, 2)]
    outcomes = {t.id: Outcome(FINISHED, t.settings["lr"] * (2.0 if t.settings["method"] == "b" else 1)) for t in trials}
    rows = ranking.best_of_each(ranking.rank(trials, outcomes, True), "method")
    assert [(row.settings["method"], row.settings["lr"]) for row in rows] == [("b", 2), ("a", 2)]


def test_the_live_table():
    screen = io.StringIO()
    view = View(Console(file=screen, force_terminal=True, width=100), "val/success", 3)
    with view:
        view.over(trial(lr=1), Outcome(FINISHED, 0.25), known=False)
        view.over(trial(lr=2), Outcome(FAILED), known=False)
        view.show([Progress(trial(lr=3), "running", 75.0, 0.5)])
    shown = screen.getvalue()
    assert "1 running, 1 finished, 1 failed, of 3" in shown and "1:15" in shown and "0.25" in shown
    assert "[2/3]" in shown  # what failed stays on the screen


def test_a_record_that_was_cut_short_is_left_out(tmp_path):
    folder = SweepFolder(tmp_path, "val/success")
    folder.write(trial(lr=1), Outcome(FINISHED, 1.0))
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"trial": "x", "sta')
    assert list(folder.records()) == [trial(lr=1).id]


def test_a_trial_that_ended_after_its_sweep_is_written_down(sweep: Sweep):
    sweep.write("optim.lr: {values: [1]}\noptim.steps: {value: 1}\n")
    assert sweep.run()[0] == 0
    lines = (sweep.path / "trials.jsonl").read_text().splitlines()
    (sweep.path / "trials.jsonl").write_text(f"{lines[0]}\n")
    assert [record["status"] for record in records(sweep).values()] == ["running"]
    assert sweep.run()[0] == 0
    assert [(record["status"], record["value"]) for record in records(sweep).values()] == [(FINISHED, 1.0)]
