"""Bases in half precision: what is trained is float32, and learns as it does around a float32 base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import PROMPTS, base_lm, batch_of

from dinado.bases.causal import BaseLM
from dinado.control.controlled_lm import ControlledLM
from dinado.parameters.full import Full
from dinado.parameters.lora import Lora
from dinado.parameters.network import Network
from dinado.parameters.parameterisation import Needs, Parameterisation

KINDS = ("network", "pointer", "lora", "lora on the output", "full")
HALF = (torch.bfloat16, torch.float16)
STEPS = 20


def half_base(name: str, dtype: torch.dtype) -> BaseLM:
    base = base_lm(name)
    with torch.no_grad():  # the start token is not the zero vector of a padding token, which norms blow up
        base.model.get_input_embeddings().weight[0] = 0.3
    return BaseLM(base.model.to(dtype), base.tokenizer)


def injected(kind: str, base: BaseLM) -> Parameterisation:
    if kind == "full":
        return Full.inject(base, link="identity", seed=0)
    if "lora" in kind:
        targets: Any = "all-linear" if kind == "lora" else ["lm_head"]
        return Lora.inject(base, link="identity", r=4, alpha=8.0, dropout=0.0, targets=targets, seed=0)
    sizes: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "taps": [0.5, 1.0], "head": "tied"}
    return Network.inject(base, link="identity", seed=0, pointer=kind == "pointer", **sizes)


def losses(kind: str, name: str, dtype: torch.dtype, device: str = "cpu") -> list[float]:
    """Return the losses of some steps of likelihood training with a penalty on the largest score."""
    base = half_base(name, dtype)
    batch = batch_of(half_base(name, torch.float32)).to(device)
    scores = injected(kind, base.to(device)).to(device)
    weights = list(scores.trained().values())
    assert weights and {weight.dtype for weight in weights} == {torch.float32}
    start = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    found = []
    for _ in range(STEPS):
        statistics = scores(batch, Needs(maximum=True)).statistics
        assert statistics.log_q.dtype == torch.float32
        loss = -statistics.log_q.sum() / batch.response_mask_BT.sum() + 0.01 * statistics.maximum.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss))
    moved = sum(int((a != b).sum()) for a, b in zip(weights, start, strict=True))
    assert moved > 0.9 * sum(weight.numel() for weight in weights), "steps are lost to rounding"
    return found


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_training_is_that_of_float32(name: str, kind: str, dtype: torch.dtype) -> None:
    exact, rough = losses(kind, name, torch.float32), losses(kind, name, dtype)
    assert exact[-1] < exact[0] - 0.05
    tolerance = 0.03 if dtype == torch.bfloat16 else 0.01
    assert rough[0] == pytest.approx(exact[0], rel=tolerance)
    assert rough[-1] == pytest.approx(exact[-1], rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding_and_folding(kind: str, dtype: torch.dtype) -> None:
    base = half_base("llama", dtype)
    scores = injected(kind, base).eval()
    ids_PS, mask_PS = base.encode_prompts(PROMPTS[:2])
    for alpha in (1.0, 1.5):
        model = ControlledLM(scores, alpha).eval()
        assert model(ids_PS, attention_mask=mask_PS).logits.dtype == torch.float32
        assert model.generate(ids_PS, attention_mask=mask_PS, max_new_tokens=3).shape[0] == 2
    if scores.is_policy:
        plain = scores.fold()
        assert len({parameter.dtype for parameter in plain.parameters()}) == 1
