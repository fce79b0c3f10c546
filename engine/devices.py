"""The device of a process, the same inside ``fit`` and outside it, where rollouts are sampled and judged."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator

from dinado.errors import ConfigError
from dinado.ranks import local_rank
from workbench.settings.run_settings import TrainerConfig


def device_of(settings: TrainerConfig) -> torch.device:
    """Return the device of this process, the same that Lightning's Trainer uses.

    Raises:
        ConfigError: there is no CUDA device for ``trainer.accelerator``, or fewer than ``trainer.devices`` asks for.
    """
    wanted, found = settings.accelerator, torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not found):
        return torch.device("cpu")
    if not found:
        raise ConfigError("trainer.accelerator=gpu: there is no CUDA device that torch can use here; take auto or cpu")
    index = local_rank()
    if index >= found and settings.backend != "gloo":
        raise ConfigError(
            f"trainer.devices={settings.devices}: this machine has {found} CUDA devices; lower it, take "
            "trainer.accelerator=cpu, or let processes share a device with trainer.backend=gloo"
        )
    return torch.device("cuda", index % found)


def backend_of(settings: TrainerConfig, device: torch.device) -> str:
    """Return the backend of the process group."""
    return {"cuda": "nccl"}.get(device.type, "gloo") if settings.backend == "auto" else settings.backend


def accelerator_of(settings: TrainerConfig) -> str | Accelerator:
    """Return Lightning's accelerator for the device of this process."""
    device = device_of(settings)
    return SharedGpus() if device.type == "cuda" and settings.backend == "gloo" else device.type


class SharedGpus(CUDAAccelerator):
    """CUDA devices of which each may serve several processes; Lightning's own gives a device to one process."""

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """Return a number for each process of this machine."""
        return list(range(int(devices)))

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        """Return the device of each process, taken in turns."""
        return [torch.device("cuda", number % torch.cuda.device_count()) for number in devices]
