"""Every tensor lies where the model does: whole runs on a device that is as strict about that as a GPU."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from commands import Command
from helpers import PROMPTS, base_lm, batch_of
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from pretend_device import NAME, Pretended, pretending
from small_run import losses, save_base, small_words

import engine.evaluate_alone
import engine.generation
import engine.probe
import engine.session
import engine.trainer
import evaluate
import generate
import train
from dinado.bases.decoder import Decoder
from dinado.rollouts.sampler import sample, uniforms
from workbench.settings.methods import METHODS

WAYS = {
    **{name: [f"method={name}"] for name in METHODS},
    "merge, full": ["method=dinado_merge", "parameters=full"],
    "hard, lora": ["method=dinado_hard", "parameters=lora"],
    "merge, layers recomputed": ["method=dinado_merge", "trainer.checkpointing=true"],
    "soft, learned root, norm first": ["method=dinado_soft", "targets.root=learned", "optim.norm_steps=2"],
    "nado, looking ahead": ["method=nado", "objective.lookahead.weight=1", "targets.positives_share=0.25"],
    "nado, states": ["method=nado", "data.states=float32", "optim.steps=8"],
    "soft, rounds": ["method=dinado_soft", "rollouts.rounds=2", "targets.weights=balance"],
    "merge, rounds": ["method=dinado_merge", "rollouts.rounds=2", "targets.weights=balance"],
    "nado, flattened": ["method=nado", "rollouts.temperature=1.5", "targets.weights=importance"],
    "nado, beams": ["method=nado", "rollouts.source=beam", "targets.weights=likelihood"],
}

DECODED = ("dinado_soft", "dinado_merge")
"""Runs that are also evaluated and generated from: a network beside the base, and a policy."""


class PretendedAccelerator(Accelerator):
    """One device for Lightning."""

    def setup_device(self, device: torch.device) -> None:
        assert device.type == NAME

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return int(devices)

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [torch.device(NAME, number) for number in range(devices)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pretending() as device:
        for module in (engine.session, engine.trainer, engine.generation, engine.evaluate_alone, engine.probe):
            if hasattr(module, "device_of"):
                monkeypatch.setattr(module, "device_of", lambda settings: device)
        monkeypatch.setattr(engine.trainer, "accelerator_of", lambda settings: PretendedAccelerator())
        # Lightning knows whose device is the root device for its own accelerators alone.
        trainer = lightning.Trainer
        monkeypatch.setattr(
            engine.trainer.L, "Trainer", lambda **given: trainer(**given | {"strategy": SingleDeviceStrategy(device)})
        )
        yield device


def test_tensors_of_two_places_do_not_mix(elsewhere: torch.device) -> None:
    there, here = torch.ones(3).to(elsewhere), torch.ones(3)
    assert isinstance(there, Pretended) and there.device == elsewhere
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError):
        there.numpy()
    assert (there + 1 + torch.tensor(2.0)).tolist() == [4, 4, 4] and (there.cpu() + here).sum() == 6


@pytest.mark.parametrize("name", ["gpt2", "llama", "markov"])
def test_bases_and_samples(name: str, elsewhere: torch.device) -> None:
    here, there = base_lm(name), base_lm(name).to(elsewhere)
    batch = batch_of(here)
    torch.testing.assert_close(there.log_probs(batch.to(elsewhere)).cpu(), here.log_probs(batch), atol=1e-5, rtol=1e-5)
    drawn = []
    for base in (here, there):
        ids_PS, mask_PS = (tensor.to(base.device) for tensor in base.encode_prompts(PROMPTS))
        uniform_NT = uniforms(range(len(PROMPTS)), 8, 12, 0, "gpu")
        drawn.append(sample(Decoder(base.model, 1.0, (1,)), ids_PS, mask_PS, base.eos_ids, uniform_NT).tokens)
    assert drawn[0] == drawn[1]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_whole_runs(way: str, elsewhere: torch.device, tmp_path: Path, command: Command) -> None:
    save_base(tmp_path / "model")
    words = [
        word for word in small_words(tmp_path) if not (way == "sft" and word.startswith(("objective.", "targets.")))
    ]
    result = command(
        train, *words, "trainer.val_every=1", "optim.batch_size=2", "optim.rows_per_prompt=2", *WAYS[way], "--json"
    )
    assert result.code == 0, result.err
    run = result.json["run_dir"]
    assert len(losses(run)) > 1 and math.isfinite(result.json["val/kl_from_base"])
    if way in DECODED:
        assert command(evaluate, run, "--json").code == 0
        for mode in ("sample", "greedy", "beam"):
            assert command(generate, run, "--prompt", "Say a.", "--mode", mode).code == 0
