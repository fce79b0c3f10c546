"""A user's own model, prompts and oracle, from the command line; and what goes wrong with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Command, Result, process
from conftest import ROOT
from helpers import tiny_llama

import generate
import train
from dinado.bases.markov import build_word_tokenizer
from workbench.run_status import status

ORACLES = """
import os
import time

calls = []

def has_two(prompts, texts):
    calls.extend(prompts)
    return [1.0 if "2" in text.split() else 0.0 for text in texts]

def nan(prompts, texts):
    return [float("nan")] * len(texts)

def slow(prompts, texts):
    time.sleep(float(os.environ.get("SECONDS_A_CALL", 0)))
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGUSR1])
def test_interrupted_sampling_keeps_its_blocks(
    own: Path, own_words: list[str], tmp_path: Path, stop: signal.Signals
) -> None:
    words = [*own_words, "oracle.function=own_oracles:slow", f"data.cache={tmp_path}/cache", "rollouts.block_size=1"]
    environment = os.environ | {"PYTHONPATH": str(own), "SECONDS_A_CALL": "0.5"}
    command = [sys.executable, str(ROOT / "train.py"), *words]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + 200
        while len(blocks := list(tmp_path.glob("cache/rollouts/*/*/*.arrow"))) < 2:
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        written = {block: block.stat().st_mtime_ns for block in blocks}
        running.send_signal(stop)
        _, err = running.communicate(timeout=200)
    finally:
        running.kill()
    (run,) = tmp_path.glob("runs/*/*")
    assert running.returncode == (75 if stop is signal.SIGUSR1 else 130) and "Traceback" not in err, err
    assert status(run).startswith("interrupted") and f"python train.py --resume {run}" in err
    if stop is signal.SIGUSR1:  # from here on the two are the same
        return
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
        ("trainer.accelerator=gpu", "trainer.accelerator=gpu: there is no CUDA device"),
        ("oracle.function=own_oracles:missing", "missing"),
    ],
)
def test_bad_files_are_one_line(command: Command, own_words: list[str], tmp_path: Path, change: str, says: str) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "1"}\n{"prompt": \n')
    (tmp_path / "blank.jsonl").write_text('{"prompt": "1"}\n{"prompt": " "}\n')
    (tmp_path / "no_model").mkdir()
    assert says in last_line(command(train, *own_words, change.replace("PROMPTS", str(tmp_path))))
