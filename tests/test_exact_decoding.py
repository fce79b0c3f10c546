"""``generate.py RUN --exact K`` and ``evaluate.py RUN --exact K`` on a small run of an exact world."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from commands import Command, process

import evaluate
import generate
from benchmarks import exact_decoding


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    words = ["exact_world", f"data.cache={folder}/cache", f"runs={folder}/runs", "optim.steps=30", "task.rarity=-0.5"]
    words += ["rollouts.per_prompt=400", "eval.rollouts_per_prompt=300", "eval.samples_per_prompt=40"]
    result = process("train.py", *words, "trainer.accelerator=cpu", "trainer.progress=false", "--json")
    assert result.code == 0, result.err
    return str(result.json["run_dir"])


def test_texts_are_chosen_and_say_what_they_cost(run: str, command: Command, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": "1", "number": number}) + "\n" for number in range(20)))
    words = [run, "--input", str(source), "--output", str(target), "--num", "2", "--exact", "16", "--budget", "160"]
    assert command(generate, *words, "--verify").code == 0
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record["number"] for record in records] == [number for number in range(20) for _ in range(2)]
    for record in records:
        assert record["accepted"] and record["score"] == 1.0
        # The oracle of this world asks for the tokens 3 and 7.
        assert {"3", "7"} <= set(record["text"].split())
        assert record["texts_drawn"] % 16 == 0 and 0 < record["effective_texts"] <= 16 and record["log_z"] < 1
    assert len({record["text"] for record in records}) > 20, "texts of one prompt are chosen among texts of their own"
    first = target.read_text()
    assert command(generate, *words, "--overwrite").code == 0 and target.read_text() == first, (
        "seeded; --verify changes no such text"
    )


def test_particles_and_rejection_write_texts(run: str, command: Command) -> None:
    words = [run, "--prompt", "1", "--num", "20", "--exact", "8", "--budget", "64", "--json"]
    found = command(generate, *words, "--decoder", "smc").json["texts"]
    assert all(record["accepted"] and {"3", "7"} <= set(record["text"].split()) for record in found)
    assert found == command(generate, *words, "--decoder", "smc").json["texts"], "seeded"
    assert found != command(generate, *words, "--decoder", "smc", "--ess", "0").json["texts"]
    strict, loose = (
        command(generate, *words, "--decoder", "qrs", "--beta", beta).json["texts"] for beta in ("0.3", "0.01")
    )
    costs = [np.mean([record["texts_drawn"] for record in records]) for records in (strict, loose)]
    assert costs[0] > costs[1] >= 1
    # Quasi-rejection may return nothing, and never a rejected text.
    none = command(generate, *words, "--decoder", "qrs", "--beta", "1e9").json["texts"]
    assert all(record == {"prompt": "1", "text": "", "accepted": False} for record in none)


def test_what_cannot_be_had_is_marked(
    run: str, command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "out.jsonl"
    words = [run, "--prompt", "1", "--num", "30", "--exact", "1", "--output", str(target), "--max-new-tokens", "3"]
    assert command(generate, *words, "--verify").code == 0
    records = [json.loads(line) for line in target.read_text().splitlines()]
    rejected = [record for record in records if not record["accepted"]]
    assert rejected and all(record["text"] == "" and record["log_z"] is None for record in rejected)
    assert all(record["text"] for record in records if record["accepted"])
    assert f"{len(rejected)} of 30 texts are not accepted and left empty" in caplog.text
    caplog.clear()
    assert command(generate, *words, "--budget", "200", "--overwrite").code == 0 and "not accepted" not in caplog.text
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert all(record["accepted"] and record["text"] for record in written)
    assert max(record["texts_drawn"] for record in written) > 1


def test_the_bound_falls_with_the_number_of_texts(run: str, command: Command) -> None:
    found = {texts: command(evaluate, run, "--exact", str(texts), "--json") for texts in (1, 16)}
    one, many = (result.json["exact"] for result in found.values())
    assert one["success"] == pytest.approx(one["success_of_one"]) and many["success"] > one["success"]
    assert many["kl_bound"] < one["kl_bound"] and many["tokens_per_text"] > 10 * one["tokens_per_text"]
    # Both are estimated, of a single prompt.
    assert many["log_z_above"] > many["log_r"] - 0.4 and 0 < many["kl_bound_above"] < one["kl_bound_above"]
    assert "One of 16 texts, chosen in proportion to its weight" in found[16].err and "nan" not in found[16].err
    assert not math.isnan(many["kl_bound"])


def test_particles_are_measured(run: str, command: Command) -> None:
    found = command(evaluate, run, "--exact", "16", "--decoder", "smc", "--json")
    numbers = found.json["exact"]
    assert numbers["decoder"] == "smc" and numbers["success"] > 0.9 and "One of 16 particles" in found.err
    assert -0.5 < numbers["kl_bound"] < 1.5 and numbers["log_z_above"] > numbers["log_r"] - 0.4


def test_the_dial_is_measured_and_drawn(run: str, command: Command, tmp_path: Path) -> None:
    figure = tmp_path / "dial.svg"
    found = command(evaluate, run, "--exact", "16", "--decoder", "qrs", "--figure", str(figure), "--json")
    points = found.json["exact"]["dial"]
    assert len(points) == 7 and "log beta" in found.err and "</svg>" in figure.read_text()
    rates, distances = [point["rate"] for point in points], [point["kl"] for point in points]
    assert rates == sorted(rates, reverse=True) and distances[0] > distances[-1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--decoder", "smc"], "--decoder belongs to --exact K"),
        (["--exact", "4", "--decoder", "best"], "--decoder best: choose sir, smc or qrs"),
        (["--exact", "4", "--figure", "x.svg"], "--figure draws the dial of --decoder qrs"),
        (["--exact", "4", "--decoder", "qrs", "--figure", "x.txt"], "--figure x.txt: name a .svg, .png or .pdf file"),
        (["--exact", "4", "--decoder", "smc", "data.cache=nowhere"], "data.cache=nowhere does not hold them"),
    ],
)
def test_mistakes_of_measuring(run: str, command: Command, words: list[str], says: str) -> None:
    assert says in command(evaluate, run, *words).error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--exact", "0"], "--exact 0: give a whole number of 1 or more"),
        (["--exact", "4", "--budget", "2"], "--budget 2: --exact 4 draws as many at once"),
        (["--budget", "4"], "--budget and --verify belong to --exact K"),
        (["--verify"], "--budget and --verify belong to --exact K"),
        (["--decoder", "smc"], "belong to --exact K"),
        (["--exact", "4", "--decoder", "rejection"], "--decoder rejection: choose sir, smc or qrs"),
        (["--exact", "4", "--decoder", "qrs"], "--decoder qrs needs --beta X above 0"),
        (["--exact", "4", "--beta", "0.5"], "--decoder qrs needs --beta X above 0"),
        (["--exact", "4", "--decoder", "qrs", "--beta", "0"], "--decoder qrs needs --beta X above 0"),
        (["--exact", "4", "--ess", "0.5"], "--ess 0.5: it belongs to --decoder smc"),
        (["--exact", "4", "--decoder", "smc", "--ess", "2"], "--ess 2: it belongs to --decoder smc"),
        (["--exact", "4", "--decoder", "smc", "data.cache=nowhere"], "data.cache=nowhere does not hold them"),
        (["--exact", "4", "--mode", "beam"], "--mode beam has nothing to choose among"),
    ],
)
def test_mistakes(run: str, command: Command, words: list[str], says: str) -> None:
    assert says in command(generate, run, "--prompt", "1", *words).error


@pytest.mark.slow
def test_the_benchmark(run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("GROUPS", 40), ("TRUE", 6), ("INNER", 2), ("PLAIN_PROMPTS", 1), ("BASE_TEXTS", 40)):
        monkeypatch.setattr(exact_decoding, name, value)
    found = exact_decoding.world_numbers(Path(run))
    assert found["KL(q*||returned)"] < found["KL(q*||q)"] and found["E log Z"] < found["E log Z, one exact"]
    cache = str(Path(run).parents[2] / "cache")
    numbers = exact_decoding.real_model(Path(run), cache, 1)
    assert list(numbers) == ["success_k16", "kl_bound_k16", "time_ratio_k16", "rejection_success_same_tokens"]
    assert numbers["success_k16"] > numbers["rejection_success_same_tokens"] > 0 and numbers["time_ratio_k16"] > 0
    assert "one of 16" in capsys.readouterr().out


def test_a_base_has_nothing_to_weigh(command: Command) -> None:
    assert (
        "--exact chooses among texts of a trained run" in command(evaluate, "base", "exact_world", "--exact", "4").error
    )
