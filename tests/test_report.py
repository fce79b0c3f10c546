"""Comparing runs: what is read, refused, grouped and counted.

Longer than 300 lines because it is about one thing: one set of made-up runs is read, compared and printed.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import Result, process
from conftest import ROOT
from report_case import make_run

import compare as script
from dinado.errors import CheckpointError, ConfigError, DataError
from workbench import cli
from workbench.report.agreement import check
from workbench.report.comparison import compare, read_all
from workbench.report.curves import panels, series, thin
from workbench.report.groups import group, short_keys
from workbench.report.palette import look
from workbench.report.run_reader import Run, find_runs, read_run
from workbench.report.sample_pairs import END, side_by_side
from workbench.report.statistics import holm, paired, summarise, unpaired


def run_with(seed: int = 0, **settings: str) -> Run:
    """A run with default settings but these, in memory; ``a__b`` is the key ``a.b``."""
    from workbench.report.run_reader import default_settings

    changed = {key.replace("__", "."): value for key, value in settings.items()}
    return Run(
        Path(f"runs/{seed}/{'-'.join(changed.values())}"), default_settings() | {"seed": str(seed)} | changed, []
    )


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]):
    def call(*words: object) -> Result:
        capsys.readouterr()
        code = cli.run(script.main, script.__doc__ or "", script.OPTIONS, False, [str(word) for word in words])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants of three seeds, and a run that has not finished."""
    folder = tmp_path_factory.mktemp("runs") / "world"
    for seed in range(3):
        for method, kl, success in (("nado", 0.5, 0.6), ("dinado_soft", 0.2, 0.9)):
            scores = [[success, success - 0.02 * seed], [success] * 2, [success - 0.1, success - 0.2]]
            words = (f"method={method}", f"seed={seed}")
            make_run(
                folder, f"{method}-{seed}", *words, kl=kl + seed / 100, success=success + seed / 100, scores=scores
            )
    make_run(folder, "going-on", "method=nado", "seed=7", status="interrupted")
    return folder


# Statistics, against numbers worked out by hand


def test_the_mean_over_seeds_and_its_interval() -> None:
    runs = [run_with(seed) for seed in range(3)]
    for run, value in zip(runs, (1.0, 2.0, 6.0), strict=True):
        run.records.append({"step": 1, "val/x": value})
    summary = summarise(runs, "val/x")
    assert summary is not None and summary.mean == 3.0 and summary.seeds == 3 and summary.over == "seeds"
    assert (summary.low, summary.high) == pytest.approx((-3.573, 9.573), abs=1e-3), "three seeds say little"
    assert summarise(runs, "val/y") is None


def test_one_seed_keeps_the_interval_that_the_run_brought() -> None:
    run = run_with()
    run.records.append({"step": 1, "val/success": 0.5, "val/success_low": 0.4, "val/success_high": 0.7})
    assert summarise([run], "val/success") == (0.5, 0.4, 0.7, 1, "prompts")


def test_a_paired_test_flips_signs() -> None:
    # Differences 1, 2, 3, 4: of 16 ways to flip signs, only all plus and all minus are as far from 0.
    test = paired({"a": 1, "b": 2, "c": 3, "d": 4, "e": 9}, {"d": 0, "c": 0, "b": 0, "a": 0, "f": 1})
    assert test is not None and test.over == "prompts" and test.counts == (4, 4)
    assert test.difference.mean == 2.5 and test.p == pytest.approx(2 / 16) and test.least_p == 2 / 16
    assert (test.difference.low, test.difference.high) == pytest.approx((0.446, 4.554), abs=1e-3), "Student, 3 degrees"
    assert paired({"a": 1}, {"a": 2}) is None and paired({"a": 1, "b": 2}, {}) is None
    same = paired({"a": 1, "b": 1}, {"a": 1, "b": 1})
    assert same is not None and same.p == 1.0 and same.difference.mean == 0


def test_an_unpaired_test_deals_runs_out_anew() -> None:
    # Of the 20 ways to deal six runs out, this one and its mirror image are the farthest apart.
    test = unpaired([1.0, 2.0, 3.0], [11.0, 12.0, 14.0])
    assert test is not None and test.over == "seeds" and test.counts == (3, 3)
    assert test.difference.mean == pytest.approx(2 - 37 / 3) and test.p == pytest.approx(2 / 20) == test.least_p
    assert test.difference.low < test.difference.mean < test.difference.high < 0
    assert unpaired([1.0], [2.0, 3.0]) is None
    flat = unpaired([1.0, 1.0], [1.0, 1.0])
    assert flat is not None and flat.p == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


# Grouping


def test_seeds_are_one_group_and_where_a_run_was_made_says_nothing() -> None:
    runs = [
        run_with(0, method="nado"),
        run_with(1, method="nado", rollouts__seed="4", runs="elsewhere", trainer__devices="2", data__cache="/x"),
        run_with(0, method="sft"),
    ]
    groups, notes = group(runs)
    assert [(one.label, len(one.runs)) for one in groups] == [("nado", 2), ("sft", 1)] and notes == []


def test_a_label_names_what_tells_groups_apart_and_no_more() -> None:
    runs = [
        run_with(method=method, objective__regulariser=weight, optim__lr=lr)
        for method, weight, lr in (("nado", "0", "1"), ("nado", "0", "2"), ("sft", "1", "1"), ("sft", "1", "2"))
    ]
    labels = [one.label for one in group(runs)[0]]
    assert labels == ["nado lr=1", "nado lr=2", "sft lr=1", "sft lr=2"], "the regulariser follows from the method"
    twice = [run_with(network__width="1", lora__r=r, network__heads=heads) for r, heads in (("1", "1"), ("1", "2"))]
    assert [one.label for one in group(twice)[0]] == ["heads=1", "heads=2"]
    assert short_keys([("a", "x"), ("b", "y")], ["optim.lr", "method"]) == ["method"]


def test_the_same_seed_twice_counts_once() -> None:
    first, second = run_with(3), run_with(3)
    groups, notes = group([first, second])
    assert groups[0].runs == [second] and "has the settings and the seed of" in notes[0]


def test_every_group_looks_its_own_way() -> None:
    assert len({look(index) for index in range(40)}) == 40


# Refusals


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"oracle__name": "length"}, "the oracle differs: oracle.name=task in RUN0 and length in RUN1"),
        ({"oracle__negate": "true"}, "the oracle differs: oracle.negate"),
        ({"task__vocab_size": "9"}, "the task differs: task.vocab_size"),
        ({"base__name": "gpt2"}, "the base differs: base.name"),
        ({"data__val_prompts": "9"}, "the held-out data differs: data.val_prompts"),
        ({"alpha": "2.0"}, "decoding differs: alpha"),
        ({"rollouts__max_new_tokens": "9"}, "decoding differs: rollouts.max_new_tokens"),
        ({"eval__samples_per_prompt": "9"}, "the evaluation differs: eval.samples_per_prompt"),
        ({"eval__text_metrics": "false", "eval__exact_samples": "3"}, "(and eval.exact_samples)"),
    ],
)
def test_evaluations_that_do_not_fit_together(change: dict[str, str], says: str) -> None:
    runs = [run_with(0), run_with(1, **change)]
    with pytest.raises(ConfigError) as caught:
        check(runs)
    for number, run in enumerate(runs):
        says = says.replace(f"RUN{number}", str(run.path))
    assert says in str(caught.value) and "; " in str(caught.value), "and what to do"


@pytest.mark.parametrize(
    "change", [{"optim__lr": "1"}, {"base__dtype": "bfloat16"}, {"eval__show": "1"}, {"task__path": "x"}]
)
def test_what_may_differ(change: dict[str, str]) -> None:
    check([run_with(0), run_with(1, **change)])


def test_prompts_are_compared_whatever_the_settings_say() -> None:
    a, b = run_with(0), run_with(1)
    a.samples["after"], b.samples["after"] = [{"prompt": "x", "score": 1}], [{"prompt": "y", "score": 1}]
    with pytest.raises(ConfigError, match="were not evaluated on the same prompts, such as 'x'"):
        check([a, b])


# Reading


def test_runs_are_found_in_folders_patterns_files_and_sweeps(runs: Path, tmp_path: Path) -> None:
    everything = {path.resolve() for path in runs.iterdir()}

    def found(*words: object) -> set[Path]:
        return {place.path.resolve() for place in find_runs([str(word) for word in words])}

    assert found(runs) == found(runs.parent) == found(runs / "*") == found(runs, runs / "nado-0") == everything
    assert found(runs / "nado-1", runs / "nado-2" / "metrics.jsonl") == {runs / "nado-1", runs / "nado-2"}
    (tmp_path / "trials.jsonl").write_text(json.dumps({"trial": "a", "run": str(runs / "nado-0")}) + "\nbroken\n")
    (tmp_path / "deeper" / "down").mkdir(parents=True)
    make_run(tmp_path / "deeper" / "down", "own")
    logged = tmp_path / "deeper" / "down" / "own" / "wandb" / "files"
    logged.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):
        (logged / name).write_text("x: 1\n")
    assert found(tmp_path) == {runs / "nado-0", tmp_path / "deeper" / "down" / "own"}


def test_an_older_run_has_the_defaults_of_settings_it_does_not_know(tmp_path: Path) -> None:
    run = make_run(tmp_path, "old")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("".join(line for line in text.splitlines(True) if "overflow" not in line))
    settings = read_run(run).settings
    assert settings["objective.oracle.overflow"] == "1.0" and settings["optim.betas"] == "[0.9, 0.95]"
    whole = read_run(make_run(tmp_path, "new")).settings
    assert settings == whole, "and defaults are written as runs write them"


def damage(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metrics.jsonl", '{"step": 1}\n{"step": 2, "val/su\n{"step": 3}\n', "metrics.jsonl: line 2 is damaged"),
        ("metrics.jsonl", "[1]\n", "metrics.jsonl: line 1 is damaged"),
        ("metrics.jsonl", '{"loss": 1}\n', "metrics.jsonl: line 1 has no step"),
        ("metrics.jsonl", "", "holds no evaluation"),
        ("samples/after.jsonl", '{"text": "x"}\n', "after.jsonl: line 1 has no prompt or no score"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "- a\n", "config.yaml holds no settings"),
        ("STATUS", "failed: OutOfMemory\n", "has not finished (failed: OutOfMemory)"),
    ],
)
def test_damage_is_one_line(command, tmp_path: Path, name: str, content: str, says: str) -> None:
    run = make_run(tmp_path, "run")
    damage(run, name, content)
    assert says in command(run).error


def test_a_run_that_is_still_written_may_end_in_half_a_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", status="running")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 999, "train/lo')
    assert read_run(run, live=True).records[-1]["step"] == 199
    with pytest.raises(DataError):
        read_run(run)


def test_unfinished_runs_are_refused_by_name_and_left_out_of_folders(runs: Path) -> None:
    with pytest.raises(CheckpointError, match="has not finished"):
        read_all(find_runs([str(runs / "going-on")]))
    read, notes = read_all(find_runs([str(runs)]))
    assert len(read) == 6 and len(notes) == 1 and "going-on has not finished (interrupted)" in notes[0]
    assert len(read_all(find_runs([str(runs)]), live=True)[0]) == 7


# Curves


def test_the_closing_record_is_not_on_the_curves_of_training(runs: Path) -> None:
    run = read_run(runs / "nado-0")
    steps, values = series(run, "reg/forward_consistency")
    assert len(steps) == 20 and values.max() < 1, "9 is what held-out rollouts said at the end"
    assert series(run, "val/kl_to_optimum")[0][-1] == 200


def test_thinning_keeps_ends_and_extremes() -> None:
    steps = np.arange(10_000.0)
    values = np.sin(steps / 300)
    values[4321], values[8000] = 50.0, -50.0
    kept = thin(steps, values, 100)
    assert len(kept) <= 100 and kept[0] == 0 and kept[-1] == 9999 and {4321, 8000} <= set(kept.tolist())
    assert list(thin(steps[:7], values[:7], 100)) == list(range(7))


def test_means_are_over_shared_steps(runs: Path) -> None:
    groups = compare(read_all(find_runs([str(runs)]))[0]).groups
    (panel,) = (one for one in panels(groups) if one.measure.key == "reg/forward_consistency")
    mine = [curve for curve in panel.curves if curve.label == "nado"]
    assert [curve.run for curve in mine] == ["seed 0", "seed 1", "seed 2", "mean of 3 seeds"]
    assert np.allclose(mine[3].values, np.mean([curve.values for curve in mine[:3]], axis=0))


def test_samples_side_by_side(runs: Path) -> None:
    groups = compare(read_all(find_runs([str(runs)]))[0]).groups
    texts, hidden = side_by_side(groups)
    assert [prompt for prompt, _ in texts] == ["prompt 0", "prompt 1", "prompt 2"] and hidden == 0
    labels = [answer.label for answer in texts[0][1]]
    assert labels == ["base", "dinado_soft", "nado"]
    tokens = texts[0][1][1].tokens
    assert [(token.text, token.level) for token in tokens] == [(" a", 1), (" b", 5), (" c", 5), (END, 10)]


# The command


def test_the_table_names_the_best_group_with_its_interval(command, runs: Path, tmp_path: Path) -> None:
    result = command(runs, "--csv", tmp_path / "table.csv", "--json")
    assert result.code == 0 and "Best by KL(q*||q) (less is better): dinado_soft, 0.210 [0.1" in result.err
    assert result.out.count("\n") == 1, "stdout is for the numbers alone"
    best = result.json["groups"][0]
    assert result.json["best"] == best["label"] == "dinado_soft" and best["seeds"] == ["0", "1", "2"]
    assert best["numbers"]["val/kl_to_optimum"]["mean"] == pytest.approx(0.21)
    success = result.json["tests"]["val/success"]["nado"]
    assert success["over"] == "prompts" and success["units"] == [3, 3] and success["difference"] == pytest.approx(0.3)
    assert success["p"] == pytest.approx(2 / 8)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["group"] for row in rows] == ["dinado_soft", "nado"] and rows[0]["method"] == "dinado_soft"
    assert float(rows[1]["val/success"]) == pytest.approx(0.61) and float(rows[1]["val/success_high"]) > 0.61
    assert command(runs, "--by", "kl_from_base").code == 0
    assert "too few seeds for a test to tell" in " ".join(command(runs).out.split())


def test_figures(command, runs: Path, tmp_path: Path) -> None:
    assert command(runs, "--figures", tmp_path / "figures").code == 0
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"val_kl_to_optimum.png", "val_kl_to_optimum.svg", "success_against_kl_from_base.svg"} <= names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name runs, or folders"),
        (["nowhere"], "no run at nowhere"),
        (["RUNS", "--by", "charm"], "--by charm: choose one of val/success, val/kl_to_optimum"),
        (["RUNS", "--every", "3"], "--every needs --watch"),
        (["RUNS", "--watch", "--json"], "--json does not go with --watch"),
        (["RUNS", "--watch", "--every", "0"], "--every 0: give a number of 0.5 or more"),
        (["RUNS", "--html", "/nowhere/page.html"], "cannot write /nowhere/page.html"),
        (["RUNS", "--csv", "/tmp"], "cannot write /tmp"),
        (["RUNS", "--figures", "/proc/nowhere"], "--figures /proc/nowhere"),
        (["RUNS", "--htm", "x"], "did you mean --html?"),
        (["RUNS", "seed=1"], "takes no settings"),
    ],
)
def test_mistakes(command, runs: Path, words: list[str], says: str) -> None:
    assert says in command(*[str(runs) if word == "RUNS" else word for word in words]).error


def test_it_starts_without_torch() -> None:
    imports = "import sys, compare; from workbench.report import comparison, watch, page, figures, output"
    code = f"{imports}; print([name for name in ('torch', 'transformers', 'lightning') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "--watch" in process("compare.py", "--help").out


def test_watching(tmp_path: Path) -> None:
    """The page follows the runs, also those that start later, and Ctrl-C ends it with a hint."""
    runs, page = tmp_path / "runs", tmp_path / "page.html"
    runs.mkdir()
    words = [sys.executable, str(ROOT / "compare.py"), str(runs), "--watch", "--every", "0.5", "--html", str(page)]
    watcher = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)

    def wait(text: str) -> None:
        for _ in range(300):
            if page.exists() and text in page.read_text(encoding="utf-8"):
                return
            time.sleep(0.1)
        raise AssertionError(f"the page never said {text}")

    try:
        make_run(runs, "one", status="running")
        wait('<span class="tag off">running</span>')
        assert 'data-refresh="0.5"' in page.read_text(encoding="utf-8")
        make_run(runs, "two", "method=nado", kl=0.25)
        wait("Best by KL(q*||q) (less is better): nado, 0.25")
    finally:
        watcher.send_signal(signal.SIGINT)
        out, err = watcher.communicate(timeout=30)
    assert watcher.returncode == 130 and "Ctrl-C ends this" in out
    assert err.count("\n") == 1 and "stopped watching; for the final page: python compare.py" in err
