"""The commands a user types: what they print, what they leave behind, and how they fail.

What only a process of its own can show runs in one; the rest calls the scripts' ``main`` here, which saves imports.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Command, Result, process
from conftest import ROOT
from helpers import exact_gpt2_words

import evaluate
import generate
import train
from engine import text_writing as writing
from workbench.run_folder import RunFolder
from workbench.run_status import status

# Before any model is loaded


def test_without_an_experiment_train_lists_them() -> None:
    result = process("train.py")
    assert result.code == 0 and not result.err
    assert {"exact_world", "quickstart"} <= {line.split()[0] for line in result.out.splitlines() if line.strip()}


def test_help_answers_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for script in ("train.py", "evaluate.py", "generate.py", "sweep.py", "compare.py", "export.py"):
        result = process(script, "--help")
        assert result.code == 0 and f"python {script}" in result.out
        assert not result.err
    assert "optim.lr" in process("train.py", "--help", "optim").out
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2.5, "seven commands of a third of a second; with torch each takes three or more"


def test_an_unknown_key_is_one_line_with_the_nearest_right_one() -> None:
    result = process("train.py", "exact_world", "optim.lrr=1")
    assert "optim.lrr" in result.error and "optim.lr" in result.error.replace("optim.lrr", "")
    assert not result.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("quickstart exact_world", "error: exact_world: one word too many"),
        ("quickstart =3", "error: =3: one word too many"),
        ("--resume runs/x quickstart", "error: quickstart: one word too many"),
        ("--resume runs/x --fast-dev-run", "a run to be resumed has its own settings"),
        ("quickstart --json --dry-run", "error: --json prints the numbers of a run"),
        ("quickstart runs=/proc/nowhere", "error: runs=/proc/nowhere: No such file or directory; name a folder"),
        ("quickstart runs=/etc/passwd", "error: runs=/etc/passwd: Not a directory; name a folder"),
    ],
)
def test_words_that_do_not_go_together(command: Command, words: str, says: str) -> None:
    assert says in command(train, *words.split()).error


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


def test_texts_do_not_depend_on_how_many_prompts_are_decoded_at_once(
    finished: tuple[Result, Path], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"prompt": "3 1"}\n' * 5)
    words = [str(finished[1]), "--input", str(source), "--num", "2"]
    together = command(generate, *words).out
    monkeypatch.setattr(writing, "BATCH", 2)
    assert command(generate, *words).out == together
    assert len(set(together.splitlines())) > 2, "every prompt has streams of its own"


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
        (["RUN", "--input", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["RUN", "--input", "/tmp"], "is a folder"),
        (["RUN", "--input", sys.executable], "is not UTF-8 text (byte"),
        (["RUN", "--prompt", "1", "--output", "/nowhere/x"], "name a file in a folder that exists"),
        (["RUN", "--prompt", "1", "--output", "/tmp"], "name a file in a folder that exists"),
        (["RUN", "--prompt", "1", "--mode", "greedy", "--num", "2"], "--mode greedy has one text"),
        (["RUN", "--prompt", "1", "--beams", "2"], "--mode sample has none"),
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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["task.required=[]"], "accept a share of 1 of all texts"),
        (["method=dinado_merge", "lora.targets=nosuch"], "lora.targets=nosuch: Target modules"),
    ],
)
def test_what_only_the_model_can_tell(command: Command, tmp_path: Path, words: list[str], says: str) -> None:
    result = command(train, "exact_world", *exact_gpt2_words(tmp_path, *words))
    assert result.code == 2 and says in result.err.splitlines()[-1], result.err


def test_the_table_of_an_exact_world_says_how_exact_it_is(command: Command, tmp_path: Path) -> None:
    result = command(train, "exact_world", *exact_gpt2_words(tmp_path, "method=nado"))
    assert result.code == 0 and "standard error of the method's KL(q*||q): 0" in " ".join(result.out.split())


def test_a_mode_that_wandb_does_not_have(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "foo")
    result = command(train, "exact_world", *exact_gpt2_words(tmp_path, "method=nado"))
    assert result.code == 2 and "WANDB_MODE=foo: choose one of" in result.err.splitlines()[-1]
    assert not (tmp_path / "cache").exists(), "nothing has been sampled for it"


def test_the_record_follows_a_run_that_goes_on_with_other_settings(command: Command, tmp_path: Path) -> None:
    words = exact_gpt2_words(tmp_path, "method=nado", "eval.best_of=0")
    run = Path(command(train, "exact_world", *words, "--json").json["run_dir"])
    before = (run / "config.yaml").read_text()
    refused = command(train, "--resume", str(run), "rollouts.seed=5", "optim.steps=8")
    assert refused.code == 2 and "the checkpoint was made with rollouts=" in refused.err.splitlines()[-1]
    assert (run / "config.yaml").read_text() == before
    assert command(train, "--resume", str(run), "optim.steps=8").code == 0
    assert "steps: 8" in (run / "config.yaml").read_text()
    assert (run / "overrides.txt").read_text().endswith("optim.steps=8\n")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense"])
def test_a_damaged_checkpoint_is_one_line(
    finished: tuple[Result, Path], command: Command, tmp_path: Path, content: bytes
) -> None:
    run = tmp_path / "runs" / "exact_world" / "damaged"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_bytes((finished[1] / "config.yaml").read_bytes())
    assert "no checkpoint yet" in command(generate, str(run), "--prompt", "1").error
    shutil.copy(finished[1] / "checkpoints" / "SHA256SUMS", run / "checkpoints")
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
