"""What Lightning or torch does silently with several processes, or on resuming, and what is done here instead."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from datamodule_case import make_data, markov_base, rows_of, words_task
from helpers import exact_gpt2

from dinado.rollouts.sampler import uniforms
from engine.restoring import build_base
from engine.trainer import build_trainer, ddp
from lightning_modules.build_method import build_method
from lightning_modules.rollout_method import RolloutMethod
from workbench.settings.config import Config

PACKAGES = ("dinado", "datamodules", "lightning_modules", "engine")


def test_nothing_is_averaged_over_processes_by_sync_dist() -> None:
    """With ``on_epoch`` it divides by a rounded count where processes saw unequal numbers of samples."""
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.keyword) and node.arg == "sync_dist"), f"{file}:{node.value.lineno}"


@pytest.mark.parametrize("world", [2, 4])
def test_evaluation_is_not_padded_to_the_number_of_processes(world: int, tmp_path: Path) -> None:
    """DistributedSampler repeats samples until all processes have as many, which counts them twice."""
    base, task = markov_base(), words_task()
    parts = [make_data(tmp_path, base, task, rank, world) for rank in range(world)]
    seen = Counter(
        row for part in parts for batch in part.val_dataloader() if batch.weight_total for row in rows_of(batch)
    )
    (whole,) = [make_data(tmp_path, base, task)]
    expected = Counter(row for batch in whole.val_dataloader() if batch.weight_total for row in rows_of(batch))
    assert seen == expected and seen.total() == 6 * len(task.val_prompts)
    assert len({len(part.val_dataloader()) for part in parts}) == 1, "unequal numbers of batches would hang"


def test_processes_share_one_draw_of_a_step(tmp_path: Path) -> None:
    """A weighted sampler that is wrapped for several processes draws on each of them, from whatever state it is in."""
    base, task = markov_base(), words_task()
    settings = {"targets__positives_share": 0.5}
    expected = [rows_of(batch) for batch in make_data(tmp_path, base, task, **settings).batches(0, 3)]
    found: list[list[tuple]] = [[], [], []]
    for rank in range(2):
        torch.manual_seed(rank)
        for step, batch in enumerate(make_data(tmp_path, base, task, rank, 2, **settings).batches(0, 3)):
            found[step] += rows_of(batch)
    assert [Counter(step) for step in found] == [Counter(step) for step in expected]


def test_the_base_stays_in_eval_mode_while_the_rest_trains(tmp_path: Path) -> None:
    """Lightning leaves modules as it finds them, and a model from a hub is found in eval mode."""
    config = exact_gpt2(tmp_path, "method=dinado_merge", "lora.dropout=0.5")
    method = build_method(config, build_base(config)).eval()
    method.on_train_start()
    modes = {name: module.training for name, module in method.named_modules()}
    assert modes[""] and modes["norm_head"]
    assert {mode for name, mode in modes.items() if "lora_dropout." in name} == {True}
    assert not any(mode for name, mode in modes.items() if name.startswith("scores.base") and "lora" not in name)


def test_processes_have_random_streams_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning gives all processes of a run the same global stream: one dropout mask, one set of samples for all."""
    config = exact_gpt2(tmp_path, "method=dinado_merge", "lora.dropout=0.5")
    method = build_method(config, build_base(config))
    seeds: list[int] = []

    def stop(self: RolloutMethod, batch: object) -> None:
        seeds.append(torch.initial_seed())
        raise StopIteration

    monkeypatch.setattr(type(method), "terms", stop)
    for rank in (0, 1, 0):
        torch.manual_seed(7)
        method.trainer = SimpleNamespace(global_rank=rank, global_step=3)  # type: ignore[assignment]
        with pytest.raises(StopIteration):
            method.training_step(None, 0)  # type: ignore[arg-type]
    assert seeds[0] == seeds[2] != seeds[1]


def test_rollouts_do_not_read_the_global_stream() -> None:
    torch.manual_seed(1)
    first, state = uniforms([0, 1], 2, 5, 0, "rollouts"), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(uniforms([0, 1], 2, 5, 0, "rollouts"), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(row.tolist()) for row in first}) == 4


def test_ddp_is_asked_for_nothing_that_hides_a_mistake() -> None:
    """No search for parameters that took no part, and no static graph, with which replicas have been seen to part."""
    assert ddp(Config().trainer)._ddp_kwargs == {"gradient_as_bucket_view": True, "forward_sync_buffers": False}


def test_lightning_does_not_replace_our_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = exact_gpt2(tmp_path, "method=nado")
    kept: dict[str, object] = {}
    monkeypatch.setattr("engine.trainer.L.Trainer", lambda **words: kept.update(words))
    folder = SimpleNamespace(path=tmp_path, run_id="x")
    build_trainer(config.trainer, config.optim, folder, 1, [], [])  # type: ignore[arg-type]
    assert kept["use_distributed_sampler"] is False and kept["num_sanity_val_steps"] == 0
