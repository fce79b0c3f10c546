"""A resumed run trains on exactly the batches that were left, and refuses to go on with others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from datamodule_case import (
    make_data,
    rows_of,
)
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.tasks import Task
from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.errors import CheckpointError


class Recorder(LightningModule):
    """Remembers the rows it was trained on; the one weight depends on their order."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[tuple]] = []
        self.val_rows = 0

    def training_step(self, batch: RolloutBatch, index: int) -> Tensor:
        self.seen.append(rows_of(batch))
        value = (batch.log_p_BT.sum(1) * batch.weight_B).sum() / batch.weight_total
        return (self.weight - value).square()

    def validation_step(self, batch: RolloutBatch, index: int) -> None:
        self.val_rows += batch.num_rows

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert math.isfinite(self.trainer.estimated_stepping_batches)  # asking this once lost the position of loaders
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: RolloutDataModule, folder: Path, max_steps: int, ckpt: Path | None = None) -> Recorder:
    model = Recorder()
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        accumulate_grad_batches=data.accumulation,
        val_check_interval=2 * data.accumulation,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        logger=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    assert trainer.global_step == max_steps
    trainer.save_checkpoint(folder / f"stopped-{max_steps}.ckpt")
    return model


@pytest.mark.filterwarnings("error:.*not resumable.*")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("micro", [4, None])
def test_a_resumed_run_sees_exactly_the_remaining_batches(
    shared_cache: Path, base: BaseLM, task: Task, micro: int | None, tmp_path: Path
) -> None:
    def data() -> RolloutDataModule:
        return make_data(shared_cache, base, task, optim__micro_batch=micro)

    whole = fit(data(), tmp_path / "whole", 9)
    first = fit(data(), tmp_path / "first", 5)
    assert len(whole.seen) == 9 * (16 // (micro or 16))
    # Written on the way, and after training was stopped.
    for path in (tmp_path / "whole" / "step=5.ckpt", tmp_path / "first" / "stopped-5.ckpt"):
        second = fit(data(), tmp_path / "second", 9, path)
        assert first.seen + second.seen == whole.seen
        assert torch.equal(second.weight, whole.weight) and whole.weight != first.weight
    # Sanity check (2 batches at most), then after steps 2, 4, 6 and 8.
    assert whole.val_rows >= 4 * 30


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"optim__batch_size": 8}, {"optim__rows_per_prompt": 2}, {"optim__micro_batch": 8}]
)
def test_a_checkpoint_of_other_batches_is_refused(shared_cache: Path, base: BaseLM, task: Task, change: dict) -> None:
    data = make_data(shared_cache, base, task)
    batches = iter(data.train_dataloader())
    for _ in range(3):
        next(batches)
    state = data.state_dict()
    assert state["steps_done"] == 3
    with pytest.raises(CheckpointError, match="cannot go on with the same batches"):
        make_data(shared_cache, base, task, **change).load_state_dict(state)
    other = make_data(shared_cache, base, task, optim__steps=20)
    other.load_state_dict(state)
    assert rows_of(next(iter(other.train_dataloader()))) == rows_of(next(batches))
