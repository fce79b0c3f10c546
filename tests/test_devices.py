"""Where a process computes: the device that its place gives it, before, in and after training."""

from __future__ import annotations

import pytest
import torch
from test_checkpoints import train

from datamodules.fill_stores import StoreFiller
from dinado.errors import ConfigError
from engine import session
from engine.devices import device_of
from lightning_modules.rollout_method import RolloutMethod
from workbench.settings.config import Config


@pytest.mark.parametrize(
    ("accelerator", "devices", "rank", "expected"),
    [("auto", 0, "0", "cpu"), ("cpu", 2, "1", "cpu"), ("auto", 2, "1", "cuda:1"), ("gpu", 1, "0", "cuda:0")],
)
def test_each_process_has_its_device(
    accelerator: str, devices: int, rank: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config()
    config.trainer.accelerator = accelerator  # type: ignore[assignment]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert device_of(config.trainer) == torch.device(expected)


@pytest.mark.parametrize(("devices", "says"), [(0, "no CUDA device"), (1, "this machine has 1 CUDA devices")])
def test_a_device_that_is_not_there(devices: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    config.trainer.accelerator, config.trainer.devices = "gpu", 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=says):
        device_of(config.trainer)


def test_rollouts_and_evaluation_are_made_on_it(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning moves a model to its device for `fit` alone."""
    moved: list[str] = []
    to = torch.nn.Module.to

    def spy(module: torch.nn.Module, *args: object, **kwargs: object) -> torch.nn.Module:
        if args and args[0] == torch.device("cpu"):
            moved.append("method" if isinstance(module, RolloutMethod) else "base")
        return to(module, *args, **kwargs)

    def noting(name: str) -> None:
        original = getattr(session, name)
        monkeypatch.setattr(session, name, lambda *args, **kwargs: (moved.append(name), original(*args, **kwargs))[1])

    monkeypatch.setattr(torch.nn.Module, "to", spy)
    noting("evaluate_method")
    fill = StoreFiller.fill_all
    monkeypatch.setattr(StoreFiller, "fill_all", lambda *args: (moved.append("fill_all"), fill(*args))[1])
    assert train(tmp_path, "nado", "devices")[0].exit_code == 0  # type: ignore[arg-type]
    order = [event for index, event in enumerate(moved) if index == 0 or moved[index - 1] != event]
    assert order[:2] == ["base", "fill_all"] and order[-2:] == ["method", "evaluate_method"]
