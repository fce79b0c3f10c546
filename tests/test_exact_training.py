"""Short training runs from settings to the final number, in worlds small enough that KL to the optimum is exact.

An untrained model closes no gap at all, so each bound is a distance that only the right loss covers.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.tasks import build_task
from experiments import loader
from experiments.run_folder import RunFolder
from lightning_modules.build import build_method
from lightning_modules.restore import build_base
from lightning_modules.session import train

SMALL = [
    "task.vocab_size=5",
    "task.length=4",
    "task.required=[1,2]",
    "rollouts.max_new_tokens=4",
    "rollouts.per_prompt=2000",
    "optim.steps=150",
    "optim.batch_size=64",
    "optim.rows_per_prompt=64",
    "eval.rollouts_per_prompt=500",
    "eval.samples_per_prompt=500",
    "eval.exact_samples=500",
    "trainer.val_every=0",
    "trainer.progress=false",
]


def outcome(tmp_path: Path, experiment: str, *words: str) -> dict[str, float]:
    """Final metrics of a run of the real training path."""
    overrides = [*SMALL, *words, f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}"]
    loaded = loader.load(experiment, overrides)
    with RunFolder.create(loaded, overrides) as folder:
        return train(loaded.config, folder, resume=False, quiet=True).metrics


@pytest.mark.parametrize(
    ("method", "bound"), [("nado", 0.9), ("dinado_soft", 0.9), ("dinado_merge", 0.9), ("dinado_hard", 0.85), ("sft", 0.8)]
)
def test_markov_world(tmp_path: Path, method: str, bound: float) -> None:
    metrics = outcome(tmp_path, "exact_world", f"method={method}", "network.width=32")
    print(method, metrics["val/gap_closed"], metrics["val/success"], metrics["reg/forward_consistency"])
    assert metrics["val/gap_closed"] > bound
    assert metrics["val/success"] > 0.8
    if method in ("dinado_soft", "dinado_merge"):
        assert metrics["reg/forward_consistency"] < 0.1
    # What is reported adds up: the gap is measured against -log of the base's true success rate.
    base_kl = -math.log(metrics["base/success_exact"])
    assert metrics["val/gap_closed"] == pytest.approx(1 - metrics["val/kl_to_optimum"] / base_kl)


@pytest.mark.parametrize(("method", "bound"), [("dinado_merge", 0.7), ("dinado_hard", 0.7)])
def test_adapters_of_a_real_transformer(tmp_path: Path, method: str, bound: float) -> None:
    metrics = outcome(tmp_path, "exact_gpt2", f"method={method}", "parameters=lora")
    print(method, metrics["val/gap_closed"], metrics["val/success"])
    assert metrics["val/gap_closed"] > bound
    assert metrics["val/kl_to_optimum_se"] == 0.0


def test_the_norm_does_not_shape_the_policy(tmp_path: Path) -> None:
    """Merge reads the norm from states that are not the norm's to change: on a network, of the network itself."""
    words = [*SMALL, "method=dinado_merge", "rollouts.per_prompt=64", f"data.cache={tmp_path}"]
    config = loader.load("exact_world", words).config
    base, task = build_base(config), build_task(config)
    from datamodules.prepare import prepare_rollouts

    prepare_rollouts(config, base, task)
    data = RolloutDataModule(config, base, task)
    data.setup("fit")
    method = build_method(config, base)
    torch.nn.init.normal_(method.norm_head.mlp[-1].weight)
    batch = next(iter(data.train_dataloader()))
    scored = method.scores(batch, method.needs)
    method.norm(scored, batch).sum().backward()
    assert all(p.grad is None for p in method.scores.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.norm_head.parameters())
