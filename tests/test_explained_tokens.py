"""Explanations of tokens against plain passes, one sequence at a time, and against an enumeration of all texts.

Axes: T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from helpers import (
    BASES,
    PROMPT_OF,
    PROMPTS,
    RESPONSES,
    base_lm,
    batch_of,
    plain_log_probs,
    prompt_tokens,
    random_lora,
    random_network,
)
from torch import Tensor

from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.control.controlled_lm import ControlledLM
from dinado.evaluation.explained_tokens import ExplainedToken, explain_tokens
from dinado.objectives import reduction
from dinado.parameters.full import Full
from dinado.parameters.parameterisation import Parameterisation
from dinado.prompt import Prompt


def full(base: BaseLM) -> Full:
    scores = Full.inject(base, link="identity", seed=0)
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in scores.policy.model.parameters():
            parameter += torch.randn(parameter.shape, generator=stream) * 0.05
    return scores.eval()


WAYS = {
    "network": lambda base: random_network(base, "identity"),
    "network of NADO": lambda base: random_network(base, "logsigmoid", head="tied", pointer=True),
    "lora": random_lora,
    "full": full,
}
CASES = [(base, way) for base in BASES for way in WAYS if base != "markov" or way.startswith("network")]
CASES.remove(("markov", "network of NADO"))  # a pointer wants embeddings


def plain_log_q(scores: Parameterisation, prompt: Sequence[int], response: Sequence[int], alpha: float) -> Tensor:
    """``[T, V]`` log q at each token, from a pass of the decoding model over one sequence without padding or cache."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logits = ControlledLM(scores, alpha)(ids).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(1)


@pytest.mark.parametrize("chunk", [reduction.CHUNK_ELEMENTS, 17])
@pytest.mark.parametrize(("name", "way"), CASES)
def test_numbers_are_those_of_plain_passes(name: str, way: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "CHUNK_ELEMENTS", chunk)
    base = base_lm(name, temperature=0.8)
    batch, scores = batch_of(base), WAYS[way](base)
    for alpha in (1.0, 0.5):
        found = explain_tokens(scores, batch, alpha=alpha, candidates=3)
        assert [len(row) for row in found] == list(map(len, RESPONSES))
        for row, (tokens, prompt) in enumerate(zip(RESPONSES, PROMPT_OF, strict=True)):
            read = prompt_tokens(base, PROMPTS[prompt])
            with scores.off():
                log_p_TV = plain_log_probs(base.model, read, tokens, base.temperature)
            log_q_TV = plain_log_q(scores, read, tokens, alpha)
            for token, one, log_p_V, log_q_V in zip(tokens, found[row], log_p_TV, log_q_TV, strict=True):
                check(one, token, log_p_V.double(), log_q_V.double())


def check(one: ExplainedToken, token: int, log_p_V: Tensor, log_q_V: Tensor) -> None:
    assert one.token == token
    assert one.log_p == pytest.approx(log_p_V[token].item(), abs=1e-4)
    assert one.log_q == pytest.approx(log_q_V[token].item(), abs=1e-4)
    assert one.log_ratio == pytest.approx((log_q_V - log_p_V)[token].item(), abs=2e-4)
    assert one.kl == pytest.approx((log_q_V.exp() * (log_q_V - log_p_V)).sum().item(), abs=1e-4)
    assert one.changed == bool(log_p_V[log_q_V.argmax()] < log_p_V.max() - 1e-6)
    for likeliest, log_V in ((one.likeliest_p, log_p_V), (one.likeliest_q, log_q_V)):
        # Tokens of one probability, as Markov chains have, come in any order.
        places = [candidate.token for candidate in likeliest]
        assert len(set(places)) == 3 and log_V[places].tolist() == pytest.approx(
            log_V.topk(3).values.tolist(), abs=1e-4
        )
        for candidate in likeliest:
            assert candidate.p == pytest.approx(log_p_V[candidate.token].exp().item(), abs=1e-4)
            assert candidate.q == pytest.approx(log_q_V[candidate.token].exp().item(), abs=1e-4)


def test_without_control_nothing_has_changed() -> None:
    base = base_lm("gpt2")
    batch = batch_of(base)
    for row in explain_tokens(random_lora(base), batch, alpha=0.0):
        assert all(one.kl < 1e-6 and abs(one.log_ratio) < 1e-5 and not one.changed for one in row)


@pytest.mark.parametrize("way", ["network", "lora"])
def test_kl_of_positions_adds_up_to_that_of_texts(way: str) -> None:
    """The chain rule over all texts of at most three tokens, of which 0 ends a text."""
    base = base_lm("gpt2", vocab_size=4)
    scores = WAYS[way](base)
    texts = {tuple(text[: text.index(0) + 1] if 0 in text else text) for text in product(range(4), repeat=3)}
    tokens = [list(text) for text in sorted(texts)]
    ids_PS, mask_PS = base.encode_prompts([Prompt("a", "3 1")])
    batch = RolloutBatch.unjudged(ids_PS, mask_PS, [0] * len(tokens), tokens)
    total, of_positions, of_tokens, exact = 0.0, 0.0, 0.0, 0.0
    for row in explain_tokens(scores, batch):
        log_p, log_q = (math.fsum(getattr(one, name) for one in row) for name in ("log_p", "log_q"))
        q = math.exp(log_q)
        total += q
        exact += q * (log_q - log_p)
        of_positions += q * sum(one.kl for one in row)
        of_tokens += q * sum(one.log_ratio for one in row)
    assert total == pytest.approx(1, abs=1e-5) and exact > 0.01
    assert of_positions == pytest.approx(exact, rel=1e-4) and of_tokens == pytest.approx(exact, rel=1e-4)


def test_there_are_no_more_candidates_than_tokens() -> None:
    base = base_lm("gpt2", vocab_size=4)
    ids_PS, mask_PS = base.encode_prompts([Prompt("a", "1")])
    batch = RolloutBatch.unjudged(ids_PS, mask_PS, [0], [[2, 0]])
    ((first, _),) = explain_tokens(random_network(base), batch, candidates=9)
    assert len(first.likeliest_p) == len(first.likeliest_q) == 4
    assert sum(candidate.q for candidate in first.likeliest_q) == pytest.approx(1, abs=1e-5)
