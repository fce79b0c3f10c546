"""The device of a process, the same inside ``fit`` and outside it, where rollouts are sampled and judged."""

from __future__ import annotations

import torch

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
    if index >= found:
        raise ConfigError(
            f"trainer.devices={settings.devices}: this machine has {found} CUDA devices; lower it, or take "
            "trainer.accelerator=cpu"
        )
    return torch.device("cuda", index)
