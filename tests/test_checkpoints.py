"""Checkpoints, resuming and the numbers of a run, in the smallest exact world on a real transformer.

Longer than 300 lines because it is about one thing: all of it asks one pair of runs, stopped and not stopped.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import exact_gpt2, exact_gpt2_words, load_checkpoint
from torch import Tensor

from dinado.errors import CheckpointError
from engine import session
from engine.evaluate_alone import evaluate_run
from engine.evaluation import evaluate_method
from engine.restoring import base_of_run, build_base, check_and_load, restore_method
from lightning_modules.build_method import build_method
from lightning_modules.callbacks.graceful_stop import GracefulStop
from workbench.run_folder import RunFolder
from workbench.run_status import status
from workbench.settings import loader
from workbench.settings.config import Config

METHODS = {
    "nado": ("method=nado", "network.width=16", "network.heads=2"),
    "merge": ("method=dinado_merge", "lora.r=4", "lora.dropout=0.2"),
}
"""An oracle network beside the base, and adapters inside it, these with dropout and therefore a random stream."""


def train(
    folder: Path, name: str, run_id: str, *overrides: str, resume: bool = False
) -> tuple[session.Outcome, RunFolder]:
    """What ``train.py exact_world ... --json`` does."""
    words = exact_gpt2_words(folder, *METHODS[name], *overrides)
    if resume:
        run = RunFolder(folder / "runs" / "exact_world" / run_id)
        config = loader.from_run_folder(run.path).config
    else:
        loaded = loader.load("exact_world", words)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_RUN_ID", run_id)
            run = RunFolder.create(loaded, words)
            config = loaded.config
    with run:
        outcome = session.train(config, run, resume=resume, quiet=True)
    return outcome, run


@pytest.fixture(scope="module", params=METHODS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunFolder, dict]:
    """A run of six steps with a validation in the middle, its folder and its result."""
    folder = tmp_path_factory.mktemp(request.param)
    outcome, run = train(folder, request.param, "straight", "trainer.val_every=3", "trainer.checkpoint_every=2")
    assert outcome.exit_code == 0
    return request.param, run, outcome.metrics


def weights(run: RunFolder) -> dict[str, Tensor]:
    return load_checkpoint(run.path)["state_dict"]


def config_of(run: RunFolder) -> Config:
    return loader.from_run_folder(run.path).config


# What a checkpoint holds


def test_checkpoints_hold_what_was_trained_and_nothing_else(finished: tuple) -> None:
    name, run, _ = finished
    file = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)
    config = config_of(run)
    fresh = build_method(config, build_base(config))
    trained = {n: p for n, p in fresh.named_parameters() if p.requires_grad}
    saved = file["state_dict"]
    assert saved.keys() == trained.keys()
    marker = "lora_" if name == "merge" else "scores.network."
    assert all(marker in key or key.startswith("norm_head.") for key in saved)
    assert file["global_step"] == 6
    moved = [key for key, value in saved.items() if not torch.equal(value, trained[key])]
    assert len(moved) > len(saved) / 2, "training changed nothing"


def test_a_restored_method_is_the_trained_one(finished: tuple) -> None:
    """Its sampled and exact numbers are those that the run reported, so its logits are the same."""
    _, run, metrics = finished
    method = restore_method(run.path)
    assert not method.training
    for key, value in weights(run).items():
        assert torch.equal(method.get_parameter(key), value), key
    other = restore_method(run.path)
    ids = torch.tensor([[0, 3, 2, 4, 1]])
    with torch.no_grad():
        assert torch.equal(method.controlled()(ids).logits, other.controlled()(ids).logits)
        untrained = build_method(config_of(run), build_base(config_of(run))).eval().controlled()(ids).logits
        assert not torch.allclose(method.controlled()(ids).logits.log_softmax(-1), untrained.log_softmax(-1), atol=1e-4)
    again = evaluate_run(config_of(run), run, quiet=True)
    for key in ("val/kl_to_optimum", "val/success", "val/kl_from_base", "val/r_calibration_error"):
        assert again[key] == pytest.approx(metrics[key], abs=1e-6), key


def test_another_base_is_refused_in_one_line(finished: tuple, tmp_path: Path) -> None:
    name, run, _ = finished
    config = exact_gpt2(tmp_path, *METHODS[name], "task.seed=1")
    with pytest.raises(CheckpointError, match="trained on another base") as caught:
        restore_method(run.path, base=build_base(config))
    assert "\n" not in str(caught.value)
    warmer = exact_gpt2(tmp_path, *METHODS[name], "base.temperature=1.5")
    with pytest.raises(CheckpointError, match="another base"):
        restore_method(run.path, base=build_base(warmer))


@pytest.mark.parametrize("change", ["shape", "missing", "extra", "renamed"])
def test_weights_of_another_shape_are_refused_by_name(finished: tuple, change: str) -> None:
    _, run, _ = finished
    checkpoint = load_checkpoint(run.path)
    state = checkpoint["state_dict"]
    key = sorted(state)[0]
    if change == "shape":
        state[key] = torch.zeros(3, 3)
    elif change == "extra":
        state["a.stranger"] = torch.zeros(1)
    else:
        value = state.pop(key)
        if change == "renamed":
            state["a.stranger"] = value
    method = restore_method(run.path)
    with pytest.raises(CheckpointError, match="does not fit this configuration") as caught:
        method.on_load_checkpoint(checkpoint)
    assert ("a.stranger" if change in ("extra", "renamed") else key) in str(caught.value)


@pytest.mark.parametrize("checkpoint", [{"a": 1}, [1], {"state_dict": [1]}, {"state_dict": {"a": 1}}])
def test_a_file_of_something_else_is_no_checkpoint(finished: tuple, checkpoint: object) -> None:
    method = restore_method(finished[1].path)
    with pytest.raises(CheckpointError, match="holds no trained parameters"):
        check_and_load(method, checkpoint)  # type: ignore[arg-type]


# What a run leaves behind

FIXED_NAMES = [
    "train/loss",
    "train/oracle_ce",
    "train/positives_share",
    "reg/forward_consistency",
    "reg/forward_consistency_per_token",
    "norm/log_beta_mean",
    "norm/log_beta_std",
    "norm/log_ratio_max",
    "norm/log_ratio_l2",
    "norm/adapter_fro",
    "weights/ess_fraction",
    "weights/max_share",
    "rollouts/success",
    "rollouts/distinct",
    "rollouts/truncated",
    "val/success",
    "val/kl_to_optimum",
    "val/kl_to_optimum_low",
    "val/kl_to_optimum_high",
    "val/gap_closed",
    "val/kl_from_base",
    "val/r_calibration_error",
    "val/distinct_2",
    "perf/tokens_per_s",
    "perf/peak_memory_mb",
    "perf/rollouts_per_s",
]


def training_steps(run: RunFolder) -> list[int]:
    """Steps at which training logged; the last record is the summary of the run."""
    return [record["step"] for record in run.metrics()[:-1] if "train/loss" in record]


def test_a_run_logs_the_fixed_names(finished: tuple) -> None:
    _, run, metrics = finished
    records = run.metrics()
    logged = {key for record in records for key in record}
    assert [name for name in FIXED_NAMES if name not in logged] == []
    assert training_steps(run) == list(range(6))
    validations = [r["step"] for r in records if "val/kl_to_optimum" in r]
    assert validations[-1] == 6 and len(validations) >= 3, "in the middle, at the end of training, and the final one"
    final = records[-1]
    numbers = {key: value for key, value in metrics.items() if value == value}  # NaN is null in the file
    assert {key: final[key] for key in numbers} == pytest.approx(numbers)
    assert {k for k in FIXED_NAMES if k.startswith(("val/", "rollouts/", "weights/"))} <= final.keys()
    assert {"base/success", "base/kl_to_optimum", "best_of_n/success"} <= final.keys()


def test_final_numbers_agree_with_each_other(finished: tuple) -> None:
    _, run, m = finished
    assert status(run.path) == "finished"
    assert m["val/gap_closed"] == pytest.approx(1 - m["val/kl_to_optimum"] / m["base/kl_to_optimum"], abs=1e-6)
    assert m["val/kl_to_optimum_low"] == m["val/kl_to_optimum"] == m["val/kl_to_optimum_high"], "exact in this world"
    assert m["base/gap_closed"] == 0.0 and m["base/kl_from_base"] == 0.0
    assert 0 < m["base/success"] < 1
    assert (run.path / "samples" / "before.jsonl").is_file()
    after = [json.loads(line) for line in (run.path / "samples" / "after.jsonl").read_text().splitlines()]
    assert {"prompt", "text", "score", "finished", "log_q", "log_p"} <= after[0].keys()
    assert sum(record["score"] for record in after) / len(after) == pytest.approx(m["val/success"])
    kl = sum(record["log_q"] - record["log_p"] for record in after) / len(after)
    assert kl == pytest.approx(m["val/kl_from_base"], abs=1e-6)


def test_evaluation_does_not_depend_on_the_state_it_finds(finished: tuple) -> None:
    """Two evaluations of one method agree: nothing is left behind in diagnostics or random streams."""
    _, run, _ = finished
    config = config_of(run)
    base, task = build_base(config), session.build_task(config)
    data = session.RolloutDataModule(config, base, task)
    data.setup("validate")
    method = restore_method(run.path, base)
    first, second = (evaluate_method(method, data, task, None).rows for _ in range(2))
    for label, row in first.items():
        assert row == pytest.approx(second[label], nan_ok=True)


# Resuming


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during optimiser step ``step``."""
    original = GracefulStop.on_train_batch_end

    def interrupted(self: GracefulStop, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            self.received = signal.SIGINT
        original(self, trainer, *args)

    patch.setattr(GracefulStop, "on_train_batch_end", interrupted)


class Crash(BaseException):
    """As good as a kill: nothing of ours runs after it."""


def crash_at(step: int, patch: pytest.MonkeyPatch) -> None:
    def crash(self: GracefulStop, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            raise Crash

    patch.setattr(GracefulStop, "on_train_batch_end", crash)


@pytest.mark.parametrize(("how", "micro_batch"), [("interrupted", None), ("crashed", None), ("crashed", 8)])
def test_a_resumed_run_is_the_run_that_was_never_stopped(finished: tuple, how: str, micro_batch: int | None) -> None:
    name, straight, _ = finished
    folder = straight.path.parent.parent.parent
    settings = ["trainer.val_every=3", "trainer.checkpoint_every=2"]
    if micro_batch is not None:
        settings.append(f"optim.micro_batch={micro_batch}")
        straight = train(folder, name, "straight8", *settings)[1]
    run_id = f"{how}{micro_batch}"
    with pytest.MonkeyPatch.context() as patch:
        if how == "interrupted":
            stop_at(3, patch)
            outcome, run = train(folder, name, run_id, *settings)
            assert outcome.exit_code == 130 and outcome.metrics == {}
            assert status(run.path).startswith("interrupted")
            assert load_checkpoint(run.path)["global_step"] == 3
        else:
            crash_at(5, patch)
            with pytest.raises(Crash):
                train(folder, name, run_id, *settings)
            run = RunFolder(straight.path.parent / run_id)
            assert status(run.path).startswith("failed")
            assert load_checkpoint(run.path)["global_step"] == 4, "the last regular checkpoint"
    outcome, run = train(folder, name, run_id, resume=True)
    assert outcome.exit_code == 0 and status(run.path) == "finished"
    expected = weights(straight)
    for key, value in weights(run).items():
        assert torch.equal(value, expected[key]), key
    assert training_steps(run) == list(range(6)), "no step is logged twice or lost"
    losses = [[r["train/loss"] for r in folder.metrics() if "train/loss" in r] for folder in (run, straight)]
    assert losses[0] == losses[1]


def test_a_second_interruption_stops_at_once_and_is_no_failure(tmp_path: Path) -> None:
    def impatient(self: GracefulStop, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 4:
            for _ in range(2):
                self._handle(signal.SIGINT, None)

    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GracefulStop, "on_train_batch_end", impatient)
        try:
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path, "nado", "twice", "trainer.checkpoint_every=2")
        finally:
            signal.signal(signal.SIGINT, before)
    run = RunFolder(tmp_path / "runs" / "exact_world" / "twice")
    assert status(run.path) == "interrupted: SIGINT"
    assert load_checkpoint(run.path)["global_step"] == 2
    assert train(tmp_path, "nado", "twice", resume=True)[0].exit_code == 0


def test_a_finished_run_can_be_extended(tmp_path: Path) -> None:
    """With a schedule that does not look at the end, more steps of an old run are the steps of a longer one."""
    constant = "optim.schedule=constant"
    longer = train(tmp_path, "merge", "longer", constant, "optim.steps=8")[1]
    short = train(tmp_path, "merge", "short", constant, "optim.steps=5")[1]
    config = loader.from_run_folder(short.path, ["optim.steps=8"]).config
    with short:
        assert session.train(config, short, resume=True, quiet=True).exit_code == 0
    expected = weights(longer)
    for key, value in weights(short).items():
        assert torch.equal(value, expected[key]), key


def test_accumulation_gives_the_same_update(tmp_path: Path) -> None:
    """1 x 16 and 2 x 8 rollouts in a step: the same sums in another order."""
    runs = [train(tmp_path, "nado", f"m{m}", f"optim.micro_batch={m}")[1] for m in (16, 8)]
    whole, halves = map(weights, runs)
    for key, value in whole.items():
        torch.testing.assert_close(halves[key], value, rtol=1e-3, atol=2e-4)


# A trained policy as the base of another run


def test_a_policy_is_a_base_of_its_own(finished: tuple, tmp_path: Path) -> None:
    name, run, _ = finished
    config = exact_gpt2(tmp_path)
    if name == "nado":
        with pytest.raises(ValueError, match="not a language model of its own"):
            base_of_run(str(run.path), config)
        return
    base = base_of_run(str(run.path), config)
    ids = torch.tensor([[0, 3, 2, 4, 1]])
    with torch.no_grad():
        expected = restore_method(run.path).controlled()(ids).logits.log_softmax(-1)
        torch.testing.assert_close(base.model(ids).logits.log_softmax(-1), expected, rtol=1e-4, atol=1e-5)
    assert not any("lora" in n for n, _ in base.model.named_parameters())
