"""``generate.py RUN_A RUN_B --alpha 1 0.5``: runs that were trained apart, restored around one base."""

from __future__ import annotations

import json
import operator
from functools import reduce
from pathlib import Path

import pytest
import torch
from commands import Command
from helpers import exact_gpt2_words

import generate
import train
from benchmarks import composition
from dinado.errors import UserError
from dinado.parameters.composed import Composed
from dinado.prompt import Prompt
from engine.composing import restore_controlled
from workbench import cli

OTHERS = {"other base": ["task.seed=1"], "warmer": ["base.temperature=0.7"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An oracle network for the token 2, adapters for the token 3, and two runs of other bases."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    words = {
        "network": ["method=dinado_soft"],
        "lora": ["method=dinado_hard", "parameters=lora", "task.required=[3]", "alpha=0.5"],
        **{name: ["method=dinado_soft", *changed] for name, changed in OTHERS.items()},
    }
    for name, more in words.items():
        argv = ["exact_world", *exact_gpt2_words(folder, *more), f"runs={folder}/{name.replace(' ', '_')}"]
        assert cli.run(train.main, "", train.OPTIONS, True, argv) == 0
        (run,) = (folder / name.replace(" ", "_") / "exact_world").iterdir()
        found[name] = str(run)
    return found


def test_restored_runs_decode_as_each_was_trained(runs: dict[str, str]) -> None:
    names = ("network", "lora")
    restored = restore_controlled([runs[name] for name in names])
    assert isinstance(restored.model.scores, Composed) and restored.model.scores.alphas == (1.0, 0.5)
    ids = torch.tensor([[0, 1, 3, 2]])
    with torch.no_grad():
        found = restored.model(ids).logits.log_softmax(-1)
        log_p = restore_controlled([runs["lora"]], alphas=[0.0]).model(ids).logits.log_softmax(-1)
        log_q = [restore_controlled([runs[name]], alphas=[1.0]).model(ids).logits.log_softmax(-1) for name in names]
    expected = (log_p + 1.0 * (log_q[0] - log_p) + 0.5 * (log_q[1] - log_p)).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights = [{id(p) for p in method.base.model.parameters()} for method in restored.methods]
    assert weights[0] < weights[1], "one copy of the base, and the adapters"


def test_generate_with_several_runs(runs: dict[str, str], command: Command, tmp_path: Path) -> None:
    two = [runs["network"], runs["lora"], "--prompt", "1", "--num", "6", "--json"]
    spelled = [["--alpha", "1", "0.5"], ["--alpha", "1,0.5"], ["--alpha=1", "0.5"], []]
    results = [command(generate, *two, *words) for words in spelled]
    assert {result.code for result in results} == {0}
    assert all(result.json == results[0].json for result in results) and len(results[0].json["texts"]) == 6
    assert results[0].json["run_dirs"] == two[:2]
    lora = command(generate, *two[1:], "--alpha", "1").json
    assert command(generate, *two, "--alpha", "0", "1").json["texts"] == lora["texts"] != results[0].json["texts"]
    output = tmp_path / "texts.jsonl"
    words = ["--exact", "8", "--budget", "400", "--verify", "--output", str(output)]
    assert command(generate, *two, *words).code == 0
    for record in map(json.loads, output.read_text().splitlines()):
        assert record["accepted"] and {"2", "3"} <= set(record["text"].split())
    # A composed proposal is corrected on the way too, by the product of the runs' twists.
    particles = command(generate, *two, "--exact", "8", "--budget", "80", "--decoder", "smc").json["texts"]
    assert all(record["accepted"] and {"2", "3"} <= set(record["text"].split()) for record in particles)
    assert command(generate, *two, "--mode", "beam").code == 0


def test_runs_that_cannot_decode_together(runs: dict[str, str], command: Command) -> None:
    one, other = runs["network"], runs["lora"]

    def error(*words: str) -> str:
        return command(generate, *words, "--prompt", "1").error

    assert "--alpha: 3 values for 2 runs; give one for each" in error(one, other, "--alpha", "1", "2", "3")
    assert "--alpha: 2 values for 1 run;" in error(one, "--alpha", "1", "2")
    assert f"{one} is named twice" in error(one, other, f"{one}/checkpoints/last.ckpt")
    assert "no run at nowhere" in error(one, "nowhere")
    found = error(one, runs["other base"])
    assert one in found and runs["other base"] in found and "models or tokenizers differ" in found
    found = error(one, runs["warmer"])
    assert runs["warmer"] in found and "base.temperature is 1.0 in the first and 0.7 in the second" in found


def test_oracles_of_two_folders_are_not_mistaken_for_each_other(
    runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored = restore_controlled([runs["network"], runs["lora"]])
    places = [tmp_path / "one", tmp_path / "other"]
    for place, method in zip(places, restored.methods, strict=True):
        place.mkdir()
        (place / "judge.py").write_text(f"NAME = {place.name!r}")
        monkeypatch.setattr(method.config.oracle, "function", "judge:verdict")
    started = dict(zip([folder.path for folder in restored.folders], places, strict=True))
    monkeypatch.setattr("engine.composing.started_in", started.get)
    with pytest.raises(UserError, match="different modules of one name, judge"):
        restored.tasks()
    (places[1] / "judge.py").write_text("NAME = 'one'")
    prompts = [Prompt("a", "")] * 3
    oracle = reduce(operator.and_, (task.oracle for task in restored.tasks()))
    assert oracle(prompts, ["2", "3", "3 2"]).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("words", "values", "positional"),
    [
        ("--alpha 1 0.5 run", [1.0, 0.5], ["run"]),
        ("run --alpha 1,0.5", [1.0, 0.5], ["run"]),
        ("--alpha 1, 0.5 --json run", [1.0, 0.5], ["run"]),
        ("--alpha=2 run", [2.0], ["run"]),
        ("--alpha 1 run --alpha 2", [1.0, 2.0], ["run"]),
        ("run", None, ["run"]),
    ],
)
def test_an_option_of_several_numbers(words: str, values: list[float] | None, positional: list[str]) -> None:
    found = cli.parse(words.split(), generate.OPTIONS)
    assert cli.numbers(found, generate.ALPHA, float, least=0.0) == values and found.positional == positional


@pytest.mark.parametrize(("words", "message"), [("x", "--alpha x"), ("1 -2", "--alpha -2"), ("1,x", "--alpha x")])
def test_an_option_of_several_numbers_refuses_words(words: str, message: str) -> None:
    found = cli.parse(["--alpha", *words.split()], generate.OPTIONS)
    with pytest.raises(UserError, match=f"{message}: give a number of 0 or more"):
        cli.numbers(found, generate.ALPHA, float, least=0.0)
    with pytest.raises(UserError, match="--alpha needs a value"):
        cli.parse(["--alpha", "--json"], generate.OPTIONS)


# The benchmark


def test_composition_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("LENGTH", 4), ("ROLLOUTS", 600), ("STEPS", 2)):
        monkeypatch.setattr(composition, name, value)
    monkeypatch.setattr("sys.argv", ["benchmark", "--worlds", "1", "--json"])
    assert composition.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    gaps = {f"gap_closed_{what}_{kind}" for what in ("composed", "joint", "exact") for kind in composition.PAIRS}
    rest = {f"{what}_{kind}" for what in ("ratio", "largest_difference") for kind in composition.PAIRS}
    assert found.keys() == gaps | rest
    assert found["largest_difference_independent"] < 1e-6 < 1e-2 < found["largest_difference_dependent"]
    assert found["gap_closed_exact_independent"] == pytest.approx(1) and found["gap_closed_exact_dependent"] < 0.99
