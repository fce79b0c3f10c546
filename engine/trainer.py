"""Construction of the Lightning Trainer: strategy, cluster environment, profiler."""

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
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy

from dinado.ranks import is_launched, rank_and_size
from engine.checkpoints import DurableCheckpoints
from engine.devices import accelerator_of, backend_of, device_of
from lightning_modules.rollout_method import RolloutMethod
from workbench.run_folder import RunFolder
from workbench.settings.run_settings import OptimConfig, TrainerConfig


def build_trainer(
    settings: TrainerConfig,
    optim: OptimConfig,
    folder: RunFolder,
    accumulation: int,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback],
) -> L.Trainer:
    """Build a Trainer that counts in optimiser steps and saves by its callbacks alone.

    Args:
        accumulation: micro-batches per process and optimiser step.
    """
    several = settings.devices * settings.num_nodes > 1
    every = settings.val_every * accumulation
    return L.Trainer(
        accelerator=accelerator_of(settings),
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        precision=settings.precision,
        strategy=ddp(settings) if several else "auto",
        max_steps=optim.steps,
        accumulate_grad_batches=accumulation,
        gradient_clip_val=optim.clip_norm or None,
        val_check_interval=every if every else 1.0,
        check_val_every_n_epoch=None if every else 1,
        limit_val_batches=1.0 if settings.val_every else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every,
        logger=list(loggers),
        callbacks=[*callbacks, *([RichProgressBar()] if settings.progress else [])],
        enable_progress_bar=settings.progress,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder.path),
        profiler=build_profiler(settings.profiler, folder),
        # A shell in an allocation of several tasks is one process: Lightning would take it for a task of srun.
        plugins=[DurableCheckpoints(), *([] if several or is_launched() else [LightningEnvironment()])],
    )


def ddp(settings: TrainerConfig) -> DDPStrategy:
    """Build the DDP strategy; gradients are views of the communication buckets, which saves a copy of them."""
    return DDPStrategy(
        process_group_backend=backend_of(settings, device_of(settings)),
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
        cluster_environment=cluster(),
    )


def cluster() -> ClusterEnvironment:
    """Return the environment of the launcher of this run, with Lightning's own requeueing switched off."""
    if torch.distributed.is_torchelastic_launched():
        return TorchElasticEnvironment()
    return LightningEnvironment() if "RANK" in os.environ else SLURMEnvironment(auto_requeue=False)


def connect(device: torch.device, backend: str) -> None:
    """Initialise the process group before Lightning does; Lightning uses an existing one."""
    environment, (rank, size) = cluster(), rank_and_size()
    os.environ.setdefault("MASTER_ADDR", environment.main_address)
    os.environ.setdefault("MASTER_PORT", str(environment.main_port))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend, rank=rank, world_size=size)


def build_profiler(name: str | None, folder: RunFolder) -> Profiler | None:
    """Build Lightning's profiler of that name, which writes into the run folder; None for no name."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return None if name is None else kinds[name](dirpath=str(folder.path), filename="profile")


def count_parameters(method: RolloutMethod) -> tuple[int, int]:
    """Count the trained parameters and all parameters."""
    everything = list(method.parameters())
    return sum(p.numel() for p in everything if p.requires_grad), sum(p.numel() for p in everything)
