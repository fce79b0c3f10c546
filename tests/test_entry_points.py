"""The commands a user types: what they print, what they leave behind, and how they fail.

What only a process of its own can show runs in one; the rest calls the scripts' ``main`` here, which saves imports.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import exact_gpt2_words, tiny_llama

import evaluate
import generate
import train
from dinado.models.markov import build_word_tokenizer
from experiments import cli
from experiments.run_folder import RunFolder, status


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr."""
        (line,) = self.err.splitlines()
        assert self.code == 2 and line.startswith("error: "), self.err
        return line

    @property
    def json(self) -> dict:
        """The last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


def process(script: str, *words: str, stdin: str = "", **environment: str) -> Result:
    """A command in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words],
        input=stdin,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=300,
    )
    return Result(done.returncode, done.stdout, done.stderr)


Command = Callable[..., Result]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """The same, in this process."""

    def call(script: object, *words: str) -> Result:
        settings = script is not generate
        capsys.readouterr()
        code = cli.run(script.main, script.__doc__, script.OPTIONS, settings, words)  # type: ignore[attr-defined]
        return Result(code, *capsys.readouterr())

    return call


# Before any model is loaded


def test_without_an_experiment_train_lists_them() -> None:
    result = process("train.py")
    assert result.code == 0 and not result.err
    assert {"exact_world", "quickstart"} <= {line.split()[0] for line in result.out.splitlines() if line.strip()}


def test_help_answers_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for script in ("train.py", "evaluate.py", "generate.py"):
        result = process(script, "--help")
        assert result.code == 0 and f"python {script}" in result.out
        assert not result.err
    assert "optim.lr" in process("train.py", "--help", "optim").out
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 8, "four commands; with torch each takes three or more"


def test_an_unknown_key_is_one_line_with_the_nearest_right_one() -> None:
    result = process("train.py", "exact_world", "optim.lrr=1")
    assert "optim.lrr" in result.error and "optim.lr" in result.error.replace("optim.lrr", "")
    assert not result.out


def test_the_settings_of_a_run_can_be_printed_and_tried_without_a_step(command: Command, tmp_path: Path) -> None:
    words = exact_gpt2_words(tmp_path, "method=nado")
    assert "vocab_size: 5" in command(train, "exact_world", *words, "--print-config").out
    result = command(train, "exact_world", *words, "--dry-run")
    assert result.code == 0 and "0 of 64 stored" in result.out and "6 steps of 16 rollouts" in result.out
    assert not (tmp_path / "runs").exists(), "neither leaves a run behind"


# One run, and everything that is done with it


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("run")
    words = exact_gpt2_words(folder, "method=dinado_merge", "lora.r=2")
    result = process("train.py", "exact_world", *words, "--json", WANDB_MODE="offline")
    assert result.code == 0, result.err
    return result, Path(result.json["run_dir"])


def test_training_in_json(finished: tuple[Result, Path]) -> None:
    result, run = finished
    numbers = result.json
    assert 0 <= numbers["val/success"] <= 1 and numbers["val/kl_to_optimum"] >= 0
    assert status(run) == "finished"
    for name in ("config.yaml", "env.json", "metrics.jsonl", "checkpoints/last.ckpt", "samples", "STATUS"):
        assert (run / name).exists(), name
    assert RunFolder(run).metrics()[-1]["val/success"] == numbers["val/success"]


def test_wandb_writes_into_the_run_folder_without_a_network(finished: tuple[Result, Path]) -> None:
    _, run = finished
    assert list((run / "wandb").glob(f"offline-run-*-{run.name}")), "W&B has the run's own id"


def test_generate_reads_stdin_in_a_process(finished: tuple[Result, Path]) -> None:
    _, run = finished
    result = process("generate.py", str(run), "--max-new-tokens", "3", stdin="3 1\n\n2\n")
    assert result.code == 0, result.err
    lines = result.out.split("\n")[:-1]
    assert len(lines) == 2 and all(set(line.split()) <= set("1234") for line in lines)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--num", "4"], 4),
        (["--mode", "greedy"], 1),
        (["--mode", "beam", "--num", "3", "--beams", "4"], 3),
        (["--alpha", "0.5", "--seed", "3"], 1),
    ],
)
def test_generate_answers_a_prompt(
    finished: tuple[Result, Path], command: Command, words: list[str], count: int
) -> None:
    _, run = finished
    result = command(generate, str(run), "--prompt", "3 1", *words)
    assert result.code == 0 and len(result.out.split("\n")) == count + 1
    assert command(generate, str(run), "--prompt", "3 1", *words).out == result.out, "seeded"
    answers = command(generate, str(run), "--prompt", "3 1", *words, "--json").json
    assert [record["text"] for record in answers["texts"]] == result.out.split("\n")[:-1]


def test_generate_from_file_to_file(finished: tuple[Result, Path], command: Command, tmp_path: Path) -> None:
    _, run = finished
    source, target = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
    source.write_text('{"prompt": "3 1", "topic": "x"}\n{"prompt": "2"}\n')
    assert command(generate, str(run), "--input", str(source), "--output", str(target), "--num", "2").code == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["3 1", "3 1", "2", "2"]
    assert rows[0]["topic"] == "x" and "topic" not in rows[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name one run"),
        (["RUN", "--mode", "magic", "--prompt", "1"], "--mode magic"),
        (["RUN", "--num", "0", "--prompt", "1"], "--num"),
        (["RUN", "--num", "two", "--prompt", "1"], "--num"),
        (["RUN", "--alpha", "-1", "--prompt", "1"], "--alpha"),
        (["RUN", "--prompt", "1", "--input", "x"], "not both"),
        (["RUN", "--input", "nowhere.jsonl"], "no such file"),
        (["RUN"], "no prompt"),
        (["RUN", "method=nado"], "takes no settings"),
        (["no/such/run", "--prompt", "1"], "no run at"),
    ],
)
def test_generate_mistakes(
    finished: tuple[Result, Path], command: Command, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert says in command(generate, *[str(finished[1]) if word == "RUN" else word for word in words]).error


def test_evaluate_repeats_the_numbers_of_training(finished: tuple[Result, Path]) -> None:
    trained, run = finished
    result = process("evaluate.py", str(run), "--json")
    assert result.code == 0, result.err
    again, before = result.json, trained.json
    assert again["run_dir"] == str(run)
    for key in ("val/success", "val/kl_to_optimum", "val/gap_closed", "val/kl_from_base", "val/r_calibration_error"):
        assert again[key] == pytest.approx(before[key], abs=1e-6), key


def test_evaluate_with_other_settings_and_without_training(
    finished: tuple[Result, Path], command: Command, tmp_path: Path
) -> None:
    trained, run = finished
    at_zero = command(evaluate, str(run), "alpha=0", "--json").json
    assert at_zero["val/gap_closed"] == pytest.approx(0.0, abs=1e-5)
    assert at_zero["val/kl_from_base"] == pytest.approx(0.0, abs=1e-5)
    base = command(evaluate, "base", "exact_world", *exact_gpt2_words(tmp_path), "--json").json
    assert base["val/kl_to_optimum"] == pytest.approx(trained.json["base/kl_to_optimum"])
    assert "experiment" in command(evaluate, "base").error and "name a run" in command(evaluate).error


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense"])
def test_a_damaged_checkpoint_is_one_line(
    finished: tuple[Result, Path], command: Command, tmp_path: Path, content: bytes
) -> None:
    run = tmp_path / "runs" / "exact_world" / "damaged"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_bytes((finished[1] / "config.yaml").read_bytes())
    assert "no checkpoint yet" in command(generate, str(run), "--prompt", "1").error
    (run / "checkpoints" / "last.ckpt").write_bytes(content)
    for result in (command(generate, str(run), "--prompt", "1"), command(train, "--resume", str(run))):
        lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert result.code == 2 and len(lines) == 1 and "last.ckpt is damaged" in lines[0]
        assert "Traceback" not in result.err


# Ctrl-C


def test_an_interrupted_training_says_how_to_go_on(tmp_path: Path) -> None:
    words = exact_gpt2_words(tmp_path, "method=nado", "optim.steps=100000", "trainer.checkpoint_every=50000")
    command = [sys.executable, str(ROOT / "train.py"), "exact_world", *words]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not (logs := list(tmp_path.glob("runs/*/*/metrics.jsonl"))) or "train/loss" not in logs[0].read_text():
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        run = logs[0].parent
        assert status(run) == "running"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=200)
    finally:
        running.kill()
    assert running.returncode == 130, err
    assert f"python train.py --resume {run}" in out
    assert "Traceback" not in err
    assert status(run).startswith("interrupted")
    assert (run / "checkpoints" / "last.ckpt").is_file()


# A user's own model, prompts and oracle

ORACLES = """
import time

calls = []

def has_two(prompts, texts):
    calls.extend(prompts)
    return [1.0 if "2" in text.split() else 0.0 for text in texts]

def nan(prompts, texts):
    return [float("nan")] * len(texts)

def slow(prompts, texts):
    time.sleep(0.5)
    return has_two(prompts, texts)

def breaks(prompts, texts):
    raise RuntimeError("out of luck")
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Llama, its tokenizer, prompts and oracles."""
    folder = tmp_path_factory.mktemp("own")
    tiny_llama(12).save_pretrained(folder / "model")
    build_word_tokenizer(12).save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "{i} {j}"}}\n' for i in (3, 4, 5) for j in (6, 7, 8)))
    (folder / "own_oracles.py").write_text(ORACLES)
    return folder


@pytest.fixture
def own_words(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.syspath_prepend(str(own))
    return [
        "quickstart",
        f"data.cache={own}/cache",
        f"runs={tmp_path}/runs",
        f"base.name={own}/model",
        "task.name=jsonl",
        f"task.path={own}/prompts.jsonl",
        "oracle.name=user",
        "oracle.function=own_oracles:has_two",
        "data.train_prompts=0",
        "data.val_prompts=3",
        "rollouts.max_new_tokens=6",
        "rollouts.truncated=score",
        "optim.batch_size=16",
        "optim.steps=4",
        "eval.samples_per_prompt=4",
        "trainer.val_every=2",
        "trainer.accelerator=cpu",
        "trainer.progress=false",
        "--json",
    ]


def last_line(result: Result) -> str:
    """The error among what a run had already said."""
    line = result.err.splitlines()[-1]
    assert result.code == 2 and line.startswith("error: ") and "Traceback" not in result.err, result.err
    return line


def test_a_users_own_oracle_model_and_prompts(command: Command, own_words: list[str]) -> None:
    result = command(train, *own_words)
    assert result.code == 0, result.err
    run = Path(result.json["run_dir"])
    assert 0 < result.json["base/success"] < 1
    assert result.json["val/kl_to_optimum_low"] <= result.json["val/kl_to_optimum"]
    assert status(run) == "finished"
    answers = command(generate, str(run), "--prompt", "3 6", "--num", "3", "--json").json["texts"]
    assert len(answers) == 3


@pytest.mark.parametrize("parameters", ["parameters=full", "method=nado", "method=dinado_hard", "method=sft"])
def test_other_methods_on_the_same_rollouts(command: Command, own_words: list[str], parameters: str) -> None:
    result = command(train, *own_words, parameters, "optim.steps=2")
    assert result.code == 0, result.err
    assert result.json["val/kl_from_base"] == result.json["val/kl_from_base"]  # not NaN


@pytest.mark.parametrize(("name", "says"), [("nan", "NaN"), ("breaks", "out of luck")])
def test_an_oracle_that_fails_names_prompt_and_text(
    command: Command, own_words: list[str], tmp_path: Path, name: str, says: str
) -> None:
    words = [*own_words, f"oracle.function=own_oracles:{name}", f"data.cache={tmp_path}/cache"]
    error = last_line(command(train, *words))
    assert says.lower() in error.lower() and "prompt" in error and f"own_oracles:{name}" in error
    (run,) = tmp_path.glob("runs/*/*")
    assert status(run).startswith("failed")


def test_interrupted_sampling_keeps_its_blocks(own: Path, own_words: list[str], tmp_path: Path) -> None:
    words = [*own_words, "oracle.function=own_oracles:slow", f"data.cache={tmp_path}/cache", "rollouts.block_size=1"]
    environment = os.environ | {"PYTHONPATH": str(own)}
    command = [sys.executable, str(ROOT / "train.py"), *words]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + 200
        while len(blocks := list(tmp_path.glob("cache/rollouts/*/*/*.arrow"))) < 2:
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        written = {block: block.stat().st_mtime_ns for block in blocks}
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=200)
    finally:
        running.kill()
    (run,) = tmp_path.glob("runs/*/*")
    assert running.returncode == 130 and "Traceback" not in err, err
    assert status(run) == "interrupted" and f"python train.py --resume {run}" in err
    again = process("train.py", "--resume", str(run), "--json", PYTHONPATH=str(own))
    assert again.code == 0 and status(run) == "finished", again.err
    assert {block: block.stat().st_mtime_ns for block in written} == written


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("task.path=PROMPTS/nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("task.path=PROMPTS/empty.jsonl", "empty.jsonl"),
        ("task.path=PROMPTS/broken.jsonl", "broken.jsonl line 2 is not JSON"),
        ("task.path=PROMPTS/blank.jsonl", "must be a text that is not blank"),
        ("base.name=PROMPTS/no_model", "no_model"),
        ("oracle.function=own_oracles:missing", "missing"),
    ],
)
def test_bad_files_are_one_line(command: Command, own_words: list[str], tmp_path: Path, change: str, says: str) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "1"}\n{"prompt": \n')
    (tmp_path / "blank.jsonl").write_text('{"prompt": "1"}\n{"prompt": " "}\n')
    (tmp_path / "no_model").mkdir()
    assert says in last_line(command(train, *own_words, change.replace("PROMPTS", str(tmp_path))))
