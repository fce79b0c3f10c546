"""The same numbers on a GPU: sampling, training in every way, resuming, several processes.

They need a CUDA device. ``DINADO_TEST_DEVICE=cpu`` runs them on the CPU, which shows that the tests themselves work.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command, process
from conftest import ROOT
from helpers import PROMPTS, base_lm, batch_of
from small_run import losses, save_base, small_words
from test_half_precision import HALF, KINDS
from test_half_precision import losses as half_losses

import evaluate
import generate
import train
from dinado.bases.decoder import Decoder
from dinado.rollouts.sampler import sample, uniforms
from workbench.settings.methods import METHODS

DEVICE = os.environ.get("DINADO_TEST_DEVICE", "cuda")
ACCELERATOR = "cpu" if DEVICE == "cpu" else "gpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WAYS = {
    **{f"{name}": [f"method={name}"] for name in METHODS},
    "merge, full": ["method=dinado_merge", "parameters=full"],
    "hard, lora": ["method=dinado_hard", "parameters=lora"],
    "merge, layers recomputed": ["method=dinado_merge", "trainer.checkpointing=true"],
    "merge, compiled": ["method=dinado_merge", "trainer.compile=true"],
    "soft, compiled": ["method=dinado_soft", "trainer.compile=true"],
    "two rounds": ["method=nado", "rollouts.rounds=2", "targets.weights=balance"],
}


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def words(folder: Path, accelerator: str, *more: str) -> list[str]:
    """The words of a small run with a cache of its own."""
    if not (folder / "model").exists():
        save_base(folder / "model")
    kept = [word for word in small_words(folder) if not word.startswith(("trainer.accelerator", "data.cache", "runs="))]
    if "method=sft" in more:
        kept = [word for word in kept if not word.startswith(("objective.", "targets."))]
    place = [f"data.cache={folder}/cache-{accelerator}", f"runs={folder}/runs-{accelerator}"]
    steps = [
        "optim.steps=4",
        "optim.batch_size=2",
        "optim.rows_per_prompt=2",
        "trainer.log_every=1",
        "trainer.val_every=0",
        f"trainer.accelerator={accelerator}",
    ]
    return [*kept, *place, *steps, *more, "--json"]


def trained(command: Command, words: list[str]) -> dict[str, Any]:
    result = command(train, *words)
    assert result.code == 0, result.err
    return result.json | {"losses": losses(result.json["run_dir"])}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bases_and_samples(name: str) -> None:
    here, there = base_lm(name), base_lm(name).to(DEVICE)
    batch = batch_of(here)
    torch.testing.assert_close(there.log_probs(batch.to(DEVICE)).cpu(), here.log_probs(batch), atol=1e-4, rtol=1e-4)
    drawn = []
    for base in (here, there):
        ids_PS, mask_PS = (tensor.to(base.device) for tensor in base.encode_prompts(PROMPTS))
        uniform_NT = uniforms(range(len(PROMPTS)), 32, 12, 0, "gpu")
        drawn.append(sample(Decoder(base.model, 1.0, (1,)), ids_PS, mask_PS, base.eos_ids, uniform_NT))
    same = [row for row, (a, b) in enumerate(zip(drawn[0].tokens, drawn[1].tokens, strict=True)) if a == b]
    assert len(same) >= 0.98 * len(drawn[0].tokens), "a uniform number at a border may fall to either side; few do"
    for row in same:
        assert drawn[1].log_p[row] == pytest.approx(drawn[0].log_p[row], abs=1e-4)
    assert drawn[0].states is not None and drawn[1].states is not None
    for row in same:
        torch.testing.assert_close(
            drawn[1].states.responses[row].cpu(), drawn[0].states.responses[row], atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize("way", WAYS)
def test_training_is_that_of_the_cpu(way: str, tmp_path: Path, command: Command) -> None:
    expected = trained(command, words(tmp_path, "cpu", *WAYS[way]))
    found = trained(command, words(tmp_path, ACCELERATOR, *WAYS[way]))
    assert len(found["losses"]) >= 4 and found["losses"] == pytest.approx(expected["losses"], rel=2e-3, abs=2e-3)
    assert found["val/kl_from_base"] == pytest.approx(expected["val/kl_from_base"], rel=0.05, abs=0.05)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_half_precision(kind: str, dtype: torch.dtype) -> None:
    expected, found = half_losses(kind, "llama", torch.float32), half_losses(kind, "llama", dtype, DEVICE)
    assert found[-1] == pytest.approx(expected[-1], rel=0.05, abs=0.03)


@pytest.mark.parametrize("method", ["dinado_soft", "dinado_merge"])
def test_mixed_precision(method: str, tmp_path: Path, command: Command) -> None:
    expected = trained(command, words(tmp_path, ACCELERATOR, f"method={method}"))["losses"]
    mixed = words(tmp_path, ACCELERATOR, f"method={method}", "trainer.precision=bf16-mixed")
    assert trained(command, mixed)["losses"] == pytest.approx(expected, rel=0.05, abs=0.02)


@pytest.mark.parametrize("method", ["dinado_soft", "dinado_merge"])
def test_a_run_on_a_base_in_bfloat16(method: str, tmp_path: Path, command: Command) -> None:
    found = trained(command, words(tmp_path, ACCELERATOR, f"method={method}", "base.dtype=bfloat16"))
    assert all(math.isfinite(loss) for loss in found["losses"]) and math.isfinite(found["val/kl_from_base"])


def test_a_run_goes_on_evaluates_and_generates(tmp_path: Path, command: Command) -> None:
    more = ["method=dinado_merge", "optim.steps=60", "trainer.checkpoint_every=1"]
    whole = trained(command, words(tmp_path, ACCELERATOR, *more))
    launched = words(tmp_path, ACCELERATOR, *more)
    stopped = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *launched], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    known = set((tmp_path / f"runs-{ACCELERATOR}").glob("*/*"))
    deadline = time.monotonic() + 120
    while not (begun := started(tmp_path, known)):
        assert stopped.poll() is None and time.monotonic() < deadline, stopped.communicate()[1]
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=120)
    assert stopped.returncode == 75 and len(losses(str(begun))) < 60
    resumed = command(train, "--resume", str(begun), "--json")
    assert resumed.code == 0, resumed.err
    assert losses(str(begun)) == pytest.approx(whole["losses"], rel=2e-3, abs=2e-3)
    assert command(evaluate, str(begun), "--json").code == 0
    for mode in ("sample", "greedy", "beam"):
        assert command(generate, str(begun), "--prompt", "Say a.", "--mode", mode).code == 0


def started(folder: Path, known: set[Path]) -> Path | None:
    """The run that is not among the known ones, once it has logged two steps."""
    for run in set((folder / f"runs-{ACCELERATOR}").glob("*/*")) - known:
        metrics = run / "metrics.jsonl"
        if metrics.is_file() and metrics.read_text().count("train/loss") > 1:
            return run
    return None


@pytest.mark.parametrize("method", ["dinado_soft", "dinado_merge"])
def test_two_processes_on_one_card(method: str, tmp_path: Path, command: Command) -> None:
    one = trained(command, words(tmp_path, ACCELERATOR, f"method={method}"))
    two = process(
        "train.py", *words(tmp_path, ACCELERATOR, f"method={method}", "trainer.devices=2", "trainer.backend=gloo")
    )
    assert two.code == 0, two.err
    assert losses(two.json["run_dir"]) == pytest.approx(one["losses"], rel=2e-3, abs=2e-3)
