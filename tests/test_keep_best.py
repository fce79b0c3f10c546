"""``trainer.keep_best``: a run ends with, reports, restores and samples from the weights that came nearest to q*."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import exact_gpt2_words, load_checkpoint
from safetensors.torch import load_file

from dinado.errors import ConfigError
from engine import session
from engine.checkpoints import read_checkpoint
from engine.restoring import restore_method
from lightning_modules.callbacks.graceful_stop import GracefulStop
from workbench.run_folder import RunFolder
from workbench.settings import loader

DRIFTS = ("method=sft", "lora.r=4", "optim.lr=0.02", "optim.steps=12", "optim.schedule=constant")
DRIFTS += ("trainer.val_every=2", "trainer.keep_best=true")
"""Far too large a rate: the distance rises again."""


class Crash(BaseException):
    """As good as a kill: nothing of ours runs after it."""


def train(folder: Path, run_id: str, *words: str, resume: bool = False) -> tuple[session.Outcome, RunFolder]:
    if resume:
        run = RunFolder(folder / "runs" / "exact_world" / run_id)
        config = loader.from_run_folder(run.path).config
    else:
        given = exact_gpt2_words(folder, *words)
        loaded = loader.load("exact_world", given)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_RUN_ID", run_id)
            run = RunFolder.create(loaded, given)
            config = loaded.config
    with run:
        return session.train(config, run, resume=resume, quiet=True), run


def validations(run: RunFolder) -> dict[int, float]:
    """KL(q*||q) by the number of steps done, at the end excepted."""
    found = {row["step"] + 1: row["val/kl_to_optimum"] for row in run.metrics() if "val/kl_to_optimum" in row}
    return {step: kl for step, kl in found.items() if step <= 12}


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, session.Outcome, RunFolder]:
    folder = tmp_path_factory.mktemp("drifts")
    return folder, *train(folder, "straight", *DRIFTS)


def test_the_nearest_weights_are_what_the_run_ends_with(drifted: Any) -> None:
    _, outcome, run = drifted
    by_step = validations(run)
    nearest = min(by_step, key=by_step.__getitem__)
    assert nearest < 12 and set(by_step) == {2, 4, 6, 8, 10, 12}
    assert outcome.metrics["val/step_kept"] == nearest
    kept, last = read_checkpoint(run.best), load_checkpoint(run.path)
    assert (kept["global_step"], last["global_step"]) == (nearest, 12)
    # What is restored, and so generated and evaluated, are these weights; a checkpoint that is named is that one.
    restored = restore_method(run.path).state_dict()
    assert all(torch.equal(value, kept["state_dict"][name]) for name, value in restored.items())
    named = restore_method(run.checkpoint).state_dict()
    assert all(torch.equal(value, last["state_dict"][name]) for name, value in named.items())


def test_a_killed_run_keeps_the_same(drifted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, straight = drifted

    def crash(self: GracefulStop, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 9:
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(GracefulStop, "on_train_batch_end", crash)
        train(folder, "killed", *DRIFTS, "trainer.checkpoint_every=4")
    outcome, run = train(folder, "killed", resume=True)
    assert outcome.metrics["val/step_kept"] == drifted[1].metrics["val/step_kept"]
    expected = read_checkpoint(straight.best)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in read_checkpoint(run.best)["state_dict"].items())


def test_a_round_is_drawn_from_the_nearest_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "method=dinado_hard",
        "parameters=lora",
        "lora.r=4",
        "optim.lr=0.01",
        "optim.schedule=constant",
        "optim.steps=12",
    )
    rounds = ("rollouts.rounds=2", "targets.weights=balance", "trainer.val_every=2", "trainer.keep_best=true")
    _, run = train(tmp_path, "rounds", *words, *rounds)
    (step,) = map(int, re.findall(r"step (\d+) came nearer to q", capsys.readouterr().err))
    assert step < 6
    by_step = validations(run)
    assert step == min((s for s in by_step if s <= 6), key=by_step.__getitem__)
    (sampled,) = (tmp_path / "cache").rglob("model.safetensors")
    kept = read_checkpoint(run.best)
    assert kept["global_step"] == step, "nothing came nearer later, so these are the weights that were sampled"
    assert all(torch.equal(value, kept["state_dict"][name]) for name, value in load_file(sampled).items())


def test_there_has_to_be_a_validation() -> None:
    with pytest.raises(ConfigError, match=r"set trainer\.val_every"):
        loader.load("exact_world", ["trainer.keep_best=true", "trainer.val_every=0"])
