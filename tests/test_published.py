"""``objective.masks=official`` against a transcript of the published losses, number by number in float64."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import base_lm
from transformers import DynamicCache

from dinado.batch import RolloutBatch
from dinado.control.oracle_network import NetworkStates
from lightning_modules.build_method import build_method
from lightning_modules.dinado_soft import DinadoSoft
from lightning_modules.nado import Nado
from workbench.settings import loader
from workbench.settings.presets import LABEL

EOS = 0
PROMPTS = [[3, 4, 5, 2], [6], [3, 4]]
"""Of one token, which nothing precedes, and of others that are padded on the left."""
ROWS = [
    (0, [5, 6, 1, EOS], 1.0),  # finished
    (0, [2, 1, 7], 0.0),  # cut off
    (1, [4, EOS], 1.0),
    (1, [EOS], 0.0),  # one token, the end
    (2, [7], 0.0),  # one token, cut off
    (2, [1, 2, 3, 4, 5, EOS], 1.0),
]


def ce(r: float, c: float) -> float:
    return -c * math.log(r) - (1 - c) * math.log(1 - r)


def f_kl(a: float, b: float) -> float:
    return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))


def method_of(name: str, **settings: object) -> Nado | DinadoSoft:
    words = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    config = loader.load(
        "exact_world", [f"method={name}", "objective.masks=official", "network.width=16", "network.heads=2", *words]
    ).config
    method = build_method(config, base_lm("llama"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    method.base.model.double()
    return method.double()  # type: ignore[return-value]


def padded_batch() -> RolloutBatch:
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[7] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    batch = RolloutBatch.unjudged(ids, mask, [prompt for prompt, _, _ in ROWS], [tokens for _, tokens, _ in ROWS])
    batch.score_B = torch.tensor([score for _, _, score in ROWS], dtype=torch.float64)
    return batch


@torch.no_grad()
def alone(method: Nado | DinadoSoft, ids: list[int]) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """p and the network's scores after every token of one text without padding, and the norm head's output there."""
    base, network = method.base, method.scores.network  # type: ignore[union-attr]
    ids_1L, ones = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)
    positions = torch.arange(len(ids))[None]
    hidden = base.model.base_model(ids_1L).last_hidden_state
    features = network.features([hidden], ids_1L, base.head)
    (state,) = network.run(features, attention_mask=ones, position_ids=positions, past_key_values=DynamicCache())
    p = base.head.logits(hidden)[0].softmax(-1).tolist()
    u = network.head(base.head).logits(network.score_hidden(NetworkStates(state, None)))[0].tolist()
    beta = [0.0] * len(ids)
    if method.norm_head is not None:
        beta = method.norm_head([state])[0].sigmoid().tolist()
    return p, u, beta


def transcript_of_nado(method: Nado, prompt: list[int], response: list[int], c: float) -> float:
    """Meng et al.: the verdict at every response token; E over next tokens against R, from the prompt's end on."""
    x = prompt + response
    p, u, _ = alone(method, x)
    r = [[1 / (1 + math.exp(-value)) for value in row] for row in u]
    loss = sum(ce(r[t][x[t + 1]], c) for t in range(len(prompt) - 1, len(x) - 1))
    for t in range(len(prompt) - 1, len(x) - 1):
        if t >= 1:
            expected = sum(pv * rv for pv, rv in zip(p[t], r[t], strict=True))
            loss += 1.0 * f_kl(expected, r[t - 1][x[t]])
    return loss


def transcript_of_dinado(method: DinadoSoft, prompt: list[int], response: list[int], c: float) -> float:
    """Lu et al.'s code: R = beta exp(score - maximum), where the second token to the last before the end are predicted.

    The mask of a row is that of the token it reads, not of the token it predicts, and the end of sequence is no token.
    """
    x = prompt + response
    p, u, beta = alone(method, x)
    r = [[b * math.exp(value - max(row)) for value in row] for b, row in zip(beta, u, strict=True)]
    is_response = [t >= len(prompt) and x[t] != EOS for t in range(len(x))]
    rows = [t for t in range(len(x) - 1) if is_response[t] and is_response[t + 1]]
    loss = ce(r[rows[-1]][x[rows[-1] + 1]], c) if rows else 0.0
    for t in rows[1:]:
        expected = sum(pv * rv for pv, rv in zip(p[t], r[t], strict=True))
        loss += 1.0 * f_kl(expected, r[t - 1][x[t]])
    return loss


@pytest.mark.parametrize("name", ["nado", "dinado_soft"])
def test_the_loss_of_every_rollout(name: str) -> None:
    method = method_of(name)
    assert method.base.eos_ids == (EOS,)
    transcript = transcript_of_nado if name == "nado" else transcript_of_dinado
    expected = [transcript(method, PROMPTS[prompt], tokens, score) for prompt, tokens, score in ROWS]  # type: ignore[arg-type]
    found_B = method.terms(padded_batch()).loss_B
    assert found_B.dtype == torch.float64
    assert found_B.tolist() == pytest.approx(expected, abs=1e-6)
    found_B.sum().backward()
    gradients = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_the_prompts_value_is_an_option() -> None:
    tied, free = (method_of("nado", objective__consistency__prompt=tie) for tie in (True, False))
    with torch.no_grad():
        differs = (tied.terms(padded_batch()).loss_B - free.terms(padded_batch()).loss_B).tolist()
    # Nothing precedes the only token of the second prompt.
    assert [difference > 1e-4 for difference in differs] == [prompt != 1 for prompt, _, _ in ROWS]


@pytest.mark.parametrize("name", ["nado", "dinado_soft", "dinado_merge", "dinado_hard"])
def test_one_setting_brings_the_whole_objective(name: str) -> None:
    loaded = loader.load("quickstart", [f"method={name}", "objective.masks=official"])
    objective = loaded.config.objective
    assert objective.consistency.weight == 1.0
    assert (objective.oracle.token_ce, objective.oracle.terminal_ce) == ((1.0, 0.0) if name == "nado" else (0.0, 1.0))
    assert not (objective.path.weight or objective.lookahead.weight or objective.likelihood.weight)
    assert loaded.config.targets.root == "learned" and loaded.config.targets.positives_share == 0.0
    assert loaded.provenance["objective.consistency.weight"] == LABEL


def test_what_stands_beside_it_counts(tmp_path: object) -> None:
    loaded = loader.load(
        "quickstart", ["method=dinado_soft", "objective.masks=official", "objective.consistency.weight=0.25"]
    )
    assert loaded.config.objective.consistency.weight == 0.25
    assert loaded.provenance["objective.consistency.weight"] == loader.COMMAND_LINE
    back = loader.load("published_quickstart", ["method=dinado_soft", "objective.masks=correct"])
    assert back.provenance["objective.consistency.weight"] != LABEL
