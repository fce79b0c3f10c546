"""A training step against the same step written the plain way: whole-vocabulary tensors, no sharing, no store."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.case import Size, build, loss_of, make_batch, with_recorded
from benchmarks.plain import plain_loss
from dinado.batch import RolloutBatch
from lightning_modules.rollout_method import RolloutMethod

SIZE = Size(vocabulary=53, layers=2, width=64, prompt=7, shortest=1, longest=6, prompts=3, per_prompt=2)


def gradients(method: RolloutMethod, loss: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in method.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


def padded(batch: RolloutBatch) -> RolloutBatch:
    """The same with prompts of different lengths."""
    mask_PS = batch.prompt_mask_PS.clone()
    mask_PS[0, :3] = 0
    return dataclasses.replace(batch, prompt_mask_PS=mask_PS)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ["nado", "dinado_soft", "dinado_merge"])
def test_the_same_loss_and_gradients(name: str, recorded: bool) -> None:
    method, batch = build(name, SIZE), padded(make_batch(SIZE))
    plain = plain_loss(method, batch)
    ours = loss_of(method, with_recorded(method, batch) if recorded else batch)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    exact = gradients(method, plain)
    for parameter, gradient in gradients(method, ours).items():
        torch.testing.assert_close(gradient, exact[parameter], rtol=1e-5, atol=1e-5, msg=parameter)
    assert sum(float(gradient.norm()) for gradient in exact.values()) > 0.1
