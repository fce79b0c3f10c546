"""Sweep files: what they mean, what is wrong with them, and that W&B's own client takes them.

Longer than 300 lines because it is about one thing: one table of good and bad sweep files.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

import sweep as script
from dinado.errors import ConfigError
from workbench import cli
from workbench.settings import loader
from workbench.sweeping import definition
from workbench.sweeping.space import DISTRIBUTIONS, parameters
from workbench.sweeping.trials import Maker, check_ends, trials

SHIPPED = sorted(path.stem for path in definition.SWEEPS.glob("*.yaml"))
HEAD = """
program: train.py
command: ["${env}", "${interpreter}", "${program}", exact_world, "${args}"]
metric: {name: val/success, goal: maximize}
"""
GRID = f"{HEAD}method: grid\nparameters:\n"


def run(*words: str) -> int:
    """The command, in this process."""
    return cli.run(script.main, script.__doc__ or "", script.OPTIONS, argv=words)


def maker(path: str, *overrides: str) -> Maker:
    return Maker(definition.read(path), overrides)


# What is tried


def test_a_grid_is_every_combination_and_the_last_parameter_changes_first(write):
    path = write(GRID + "  method: {values: [nado, dinado_hard]}\n  optim.lr: {value: 0.5}\n  seed: {min: 3, max: 5}\n")
    found = trials(maker(path, "optim.steps=7"))
    assert [tuple(trial.settings.values()) for trial in found] == [
        (method, 0.5, seed) for method in ("nado", "dinado_hard") for seed in (3, 4, 5)
    ]
    first = found[0]
    assert first.words == ("exact_world", "optim.steps=7", "--method=nado", "--optim.lr=0.5", "--seed=3")
    assert first.run == Path(f"runs/exact_world/mine-{first.id}") and first.steps == 7
    assert len({trial.id for trial in found}) == 6


def test_a_trial_is_known_by_what_decides_its_outcome(write):
    path = write(GRID + "  optim.lr: {values: [0.001, 0.002]}\n")
    plain = [trial.id for trial in trials(maker(path))]
    assert [trial.id for trial in trials(maker(path, "runs=elsewhere", "data.cache=there"))] == plain
    assert [trial.id for trial in trials(maker(path, "alpha=1"))] == plain  # the default, said aloud
    assert not set(plain) & {trial.id for trial in trials(maker(path, "optim.steps=9"))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("variants_exact", 4 * 5),
        ("variants_regulariser", 3 * 5 * 3),
        ("proposals_rounds", 3 * 3 * 3 * 3),
        ("fair_commongen", 5 * 4 * 3),
    ],
)
def test_shipped_grids_by_hand(name, count):
    assert len(trials(maker(name))) == count


def test_the_fair_comparison_reads_one_store_on_one_budget():
    sweep = maker("fair_commongen")
    methods, rates, _ = (parameter.grid() for parameter in sweep.definition.parameters)
    made = [sweep.make({"method": method, "optim.lr": rates[0], "seed": 0}) for method in methods]
    configs = [loader.load(trial.words[0], trial.words[1:]).config for trial in made]
    assert len({repr(config.rollouts) for config in configs}) == 1
    assert len({(config.optim.steps, config.optim.batch_size) for config in configs}) == 1
    assert Counter(config.method for config in configs).keys() >= {"sft", "nado", "dinado_hard"}


def test_random_draws_are_the_same_every_time_and_more_of_them_begin_alike(write):
    path = write(
        f"{HEAD}method: random\nrun_cap: 4\nparameters:\n"
        "  optim.lr: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-2}\n  seed: {values: [0, 1, 2]}\n"
    )
    four = trials(maker(path), 4)
    assert trials(maker(path), 4) == four and trials(maker(path), 9)[:4] == four
    assert trials(maker(path), 4, seed=1) != four
    assert all(1e-4 <= trial.settings["optim.lr"] <= 1e-2 for trial in four)


SPECS = {
    "uniform": {"min": -1.0, "max": 3.0},
    "int_uniform": {"min": 2, "max": 6},
    "q_uniform": {"min": 0.0, "max": 1.0, "q": 0.25},
    "log_uniform_values": {"min": 1e-4, "max": 1.0},
    "q_log_uniform_values": {"min": 1, "max": 256, "q": 16},
    "normal": {"mu": 1.0, "sigma": 2.0},
    "q_normal": {"q": 0.5},
    "log_normal": {"mu": -1.0, "sigma": 0.5},
    "q_log_normal": {"mu": 2.0, "q": 1},
    "categorical": {"values": [1, "two", [3]]},
    "categorical_w_probabilities": {"values": ["a", "b", "c"], "probabilities": [0.5, 0.25, 0.25]},
    "constant": {"value": None},
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions_are_those_of_wandb(name):
    """Its own controller draws with the same quantiles."""
    from sweeps.params import HyperParameter

    spec = {"distribution": name, **SPECS[name]}
    (mine,) = parameters({"x": spec})
    theirs = HyperParameter("x", dict(spec))
    for u in (0.01, 0.2, 0.39, 0.5, 0.77, 0.99):
        value, expected = mine.at(u), theirs.ppf(u)
        assert value == (expected if isinstance(value, str | list | None) else pytest.approx(expected, rel=1e-5)), u


def test_bounds_and_quantiles_by_hand():
    found = {
        name: parameters({"x": {"distribution": name, **SPECS[name]}})[0]
        for name in DISTRIBUTIONS
        if name not in ("categorical", "constant", "categorical_w_probabilities")
    }
    assert [found["uniform"].at(u) for u in (0, 0.25, 1)] == [-1, 0, 3]
    assert [found["log_uniform_values"].at(u) for u in (0, 0.5, 1)] == [1e-4, 1e-2, 1]
    assert [found["int_uniform"].at(u) for u in (0, 0.2, 0.21, 1)] == [2, 2, 3, 6]
    assert [found["q_uniform"].at(u) for u in (0, 0.3, 1)] == [0, 0.25, 1]
    assert found["normal"].at(0.5) == 1 and found["normal"].at(0.975) == pytest.approx(1 + 2 * 1.96, abs=1e-3)
    assert found["log_normal"].at(0.5) == pytest.approx(math.exp(-1), rel=1e-5)
    assert found["q_log_uniform_values"].at(0.9) % 16 == 0
    assert set(found["uniform"].samples()) >= {-1, 3} and len(found["normal"].samples()) == 3
    shares = Counter(found["int_uniform"].at((i + 0.5) / 1000) for i in range(1000))
    assert shares == {value: 200 for value in range(2, 7)}
    assert parameters({"x": {"min": 0.5, "max": 2.0}})[0].distribution == "uniform"


@pytest.mark.parametrize(
    "spec", [{"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.2}, {"min": 1, "max": 3}]
)
def test_grids_of_ranges_are_those_of_wandb(spec):
    from sweeps.grid_search import grid_search_next_runs

    body = {"method": "grid", "parameters": {"x": spec}}
    runs = [run for run in grid_search_next_runs([], body, n=10) if run is not None]
    assert list(parameters({"x": spec})[0].grid()) == pytest.approx([run.config["x"]["value"] for run in runs])


# What is wrong


WRONG = {
    "unknown parameter": ("  optim.lrr: {value: 1}", "optim.lrr: no such key; did you mean optim.lr?"),
    "a section": ("  optim: {value: 1}", "optim is a section; sweep its keys, such as optim.name"),
    "wrong type": ("  optim.steps: {values: [10, many]}", "optim.steps=many: expected int (trial optim.steps=many)"),
    "type inside a range": (
        "  optim.steps: {distribution: uniform, min: 1, max: 4}",
        "method=grid takes value, values, int_uniform or q_uniform",
    ),
    "refused combination": (
        "  method: {values: [nado, dinado_hard]}\n  objective.consistency.weight: {values: [0.5]}",
        "objective.consistency.weight=0.5: ignored, dinado_hard is forward-consistent by construction "
        "(trial method=dinado_hard objective.consistency.weight=0.5)",
    ),
    "out of range": ("  optim.lr: {values: [1, -1]}", "optim.lr=-1.0: must be above 0"),
    "no values": ("  optim.lr: {values: []}", "optim.lr: values=[]: give a list of one value or more"),
    "values no list": ("  optim.lr: {values: 3}", "optim.lr: values=3: give a list"),
    "value twice": ("  seed: {values: [1, 1]}", "seed: values has one twice"),
    "nothing": ("  optim.lr: {}", "optim.lr: expected value, values, or min and max"),
    "a bare value": ("  optim.lr: 3", "optim.lr: expected value, values, or min and max, got 3"),
    "nested": ("  optim: {parameters: {lr: {value: 1}}}", "write optim.<name>"),
    "min above max": ("  seed: {min: 3, max: 1}", "seed: min=3 is not below max=1"),
    "min alone": ("  seed: {min: 3}", "seed: max is missing (uniform)"),
    "mixed ends": ("  seed: {min: 3, max: 4.5}", "seed: min and max are both whole"),
    "both": ("  seed: {value: 3, min: 1}", "seed: min does not belong to constant"),
    "unknown distribution": ("  seed: {distribution: uniformly, min: 1, max: 2}", "did you mean uniform?"),
    "far distribution": ("  seed: {distribution: beta, a: 1, b: 2}", "seed: distribution=beta: there are constant"),
    "text for a number": (
        "  optim.lr: {distribution: log_uniform_values, min: 1e-5, max: 1.0}",
        "optim.lr: min=1e-5 is text to YAML",
    ),
    "logarithm of nothing": (
        "  optim.lr: {distribution: log_uniform_values, min: 0, max: 1.0}",
        "a logarithm needs a number above 0",
    ),
    "probabilities": ("  seed: {values: [1, 2], probabilities: [0.5, 0.6]}", "probabilities are one for each"),
    "swept twice": ("  optim.lr: {value: 1}\n  optim-lr: {value: 2}", "no such key"),
    "the folder": ("  runs: {values: [a, b]}", "runs: a sweep keeps all of its runs in one place"),
    "no parameters": ("", "parameters: name at least one setting"),
}


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=list(WRONG))
def test_wrong_parameters_are_one_line_and_nothing_is_written(body, message, write, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write(GRID + body + "\n")
    assert run(path) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: mine.yaml: ") and message in err
    assert os.listdir(tmp_path) == ["mine.yaml"]


COMMAND = '"${program}", exact_world, "${args}"'
SWEEP = (
    f"program: train.py\ncommand: [{COMMAND}]\nmetric: {{name: a}}\nmethod: grid\nparameters: {{seed: {{value: 1}}}}"
)
MALFORMED = {
    "not yaml": (SWEEP + "\na: [", "line 6: "),
    "a list": ("- 1", "expected `key: value` lines, found a list"),
    "empty": ("", "found nothing"),
    "twice": (SWEEP + "\nmethod: grid", "method occurs twice"),
    "unknown key": (SWEEP + "\nearly_terminates: {}", "early_terminates: no such key; did you mean early_terminate?"),
    "no metric": (SWEEP.replace("metric", "description"), "metric: say what trials are ranked by"),
    "goal": (SWEEP.replace("{name: a}", "{name: a, goal: max}"), "metric: goal=max: minimize or maximize"),
    "target": (SWEEP.replace("{name: a}", "{name: a, target: 3}"), "metric: target: only name and goal are read here"),
    "unknown method": (SWEEP.replace("method: grid", "method: gird"), "method=gird: did you mean grid?"),
    "no method": (SWEEP.replace("method: grid", ""), "method=None: "),
    "run_cap": (SWEEP + "\nrun_cap: 0", "run_cap=0: give a whole number of 1 or more"),
    "program": (SWEEP.replace("train.py", "main.py"), "program=main.py: a trial is a run of train.py"),
    "no command": (SWEEP.replace("command", "description"), "command: give a list such as"),
    "no args": (SWEEP.replace(', "${args}"', ""), "command: ${args} is missing"),
    "other args": (SWEEP.replace("exact_world", '"${args_json}"'), "command: ${args_json}: train.py reads ${args}"),
    "no experiment": (SWEEP.replace("exact_world, ", ""), "command: an experiment is missing"),
    "two experiments": (SWEEP.replace("exact_world", "exact_world, quickstart"), "quickstart: one word too many"),
    "unknown experiment": (SWEEP.replace("exact_world", "exact_wrld"), "did you mean exact_world?"),
    "an option": (SWEEP.replace("exact_world", "exact_world, --json"), "command: --json: settings alone"),
    "before": (SWEEP.replace('"${program}"', 'nice, "${program}"'), "command: nice before ${program}"),
    "swept and fixed": (SWEEP.replace("exact_world", "exact_world, seed=1"), "seed=1: seed is swept"),
    "termination": (
        SWEEP + "\nearly_terminate: {type: median}",
        "early_terminate: give {type: hyperband, min_iter: 3}",
    ),
    "bands": (SWEEP + "\nearly_terminate: {type: hyperband}", "early_terminate: give min_iter, or max_iter with s"),
    "eta": (SWEEP + "\nearly_terminate: {type: hyperband, min_iter: 1, eta: 1}", "eta=1: give a number above 1"),
    "no band": (SWEEP + "\nearly_terminate: {type: hyperband, max_iter: 2, s: 1}", "there is no band"),
}


@pytest.mark.parametrize(("text", "message"), MALFORMED.values(), ids=list(MALFORMED))
def test_malformed_files_are_one_line_and_nothing_is_written(text, message, write, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(write(text)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: mine.yaml: ") and message in err
    assert os.listdir(tmp_path) == ["mine.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("variants_exct", "no sweep 'variants_exct'; did you mean variants_exact?"),
        ("missing.yaml", "no sweep file missing.yaml"),
        ("variants_exact more", "more: one word too many"),
        ("variants_exact --jobs 0", "--jobs 0: give a whole number of 1 or more"),
        ("variants_exact --job 2", "did you mean --jobs?"),
        ("variants_exact seed=3", "command line: seed=3: seed is swept by variants_exact.yaml"),
        ("variants_exact optim.lrr=3", "optim.lrr=3: no such key; did you mean optim.lr?"),
        ("variants_exact --per seed", "--per seed: "),
        ("lr_method", "method=bayes has no end of trials: say how many with --trials N"),
    ],
)
def test_the_command_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err and os.listdir(tmp_path) == []


def test_ranges_are_checked_at_their_ends_and_inside(write):
    body = f"{HEAD}method: random\nparameters:\n  "
    whole = write(body + "optim.steps: {distribution: uniform, min: 1, max: 4}\n", "whole")
    with pytest.raises(ConfigError, match=r"optim.steps=2.146: expected int"):
        check_ends(maker(whole))
    end = write(body + "rollouts.base_share: {min: 0.5, max: 1.5}\n", "end")
    with pytest.raises(ConfigError, match=r"rollouts.base_share=1.5: must be from 0 to 1"):
        check_ends(maker(end, "rollouts.rounds=2", "targets.weights=balance"))


def test_bayes_without_optuna_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run("lr_method", "--trials", "2") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "pip install -r requirements-sweep.txt" in err
    assert os.listdir(tmp_path) == []


# What it shows before anything starts


def test_listing_help_and_dry_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run() == 0 and run("--help") == 0
    page = capsys.readouterr().out
    assert all(name in page for name in (*SHIPPED, "--jobs N", "--per KEY"))
    assert run("variants_exact", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21 and "waiting" in lines[0] and "method=nado seed=0" in lines[0]
    assert run("lr_method", "--dry-run", "--trials", "7") == 0
    assert "7 trials over method, optim.lr" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


def test_no_torch_is_loaded():
    code = "import sys, sweep; print([name for name in ('torch', 'optuna', 'scipy', 'wandb') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
