"""The Trainer of a run, and what happens around ``fit``."""

from __future__ import annotations

import os
from collections.abc import Sequence

import lightning as L
import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy

from experiments.config import Config
from experiments.derived import round_starts
from experiments.place import place
from experiments.run_folder import RunFolder
from lightning_modules.base import OracleMethod
from lightning_modules.callbacks import GracefulStop
from lightning_modules.checkpoints import LAST, DurableCheckpoints
from lightning_modules.devices import device_of


def build_trainer(
    config: Config, folder: RunFolder, accumulation: int, loggers: Sequence[Logger]
) -> tuple[L.Trainer, GracefulStop]:
    """A Trainer that counts in optimiser steps and keeps ``checkpoints/last.ckpt`` up to date.

    Args:
        accumulation: micro-batches of a process in an optimiser step.
    """
    settings = config.trainer
    saved_after = round_starts(config)[1:]
    stop = GracefulStop(folder.path / "checkpoints" / LAST, saved_after=saved_after)
    checkpoints = ModelCheckpoint(
        folder.path / "checkpoints",
        save_last=True,
        save_top_k=0,
        every_n_train_steps=settings.checkpoint_every,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [stop, checkpoints]
    if settings.progress:
        callbacks.append(RichProgressBar())
    several = settings.devices * settings.num_nodes > 1
    every = settings.val_every * accumulation
    trainer = L.Trainer(
        accelerator=device_of(config).type,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        precision=settings.precision,
        strategy=ddp() if several else "auto",
        max_steps=config.optim.steps,
        accumulate_grad_batches=accumulation,
        gradient_clip_val=config.optim.clip_norm or None,
        val_check_interval=every if every else 1.0,
        check_val_every_n_epoch=None if every else 1,
        limit_val_batches=1.0 if settings.val_every else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every,
        logger=list(loggers),
        callbacks=callbacks,
        enable_progress_bar=settings.progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder.path),
        profiler=build_profiler(settings.profiler, folder),
        plugins=[DurableCheckpoints()],
    )
    return trainer, stop


def ddp() -> DDPStrategy:
    """Gradients of what is trained are averaged; they lie where they are sent from, which saves a copy of them."""
    return DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True, cluster_environment=cluster())


def cluster() -> ClusterEnvironment:
    """Who started the processes of this run; when to stop and to be requeued is not Lightning's business."""
    if torch.distributed.is_torchelastic_launched():
        return TorchElasticEnvironment()
    return LightningEnvironment() if "RANK" in os.environ else SLURMEnvironment(auto_requeue=False)


def connect(device: torch.device) -> None:
    """Let the processes of a run talk to each other before Lightning does; it takes what it finds."""
    environment, (rank, size) = cluster(), place()
    os.environ.setdefault("MASTER_ADDR", environment.main_address)
    os.environ.setdefault("MASTER_PORT", str(environment.main_port))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size)


def build_profiler(name: str | None, folder: RunFolder) -> Profiler | None:
    """Lightning's profiler of that name, which writes into the run folder."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return None if name is None else kinds[name](dirpath=str(folder.path), filename="profile")


def count_parameters(method: OracleMethod) -> tuple[int, int]:
    """Trained and all parameters."""
    everything = list(method.parameters())
    return sum(p.numel() for p in everything if p.requires_grad), sum(p.numel() for p in everything)
