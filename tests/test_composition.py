"""Several runs that decode together: against sums written by hand, with and without a cache.

Axes: N rows, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from contracts.parameters import perturb
from helpers import PROMPTS, base_lm, plain_log_probs, random_lora, random_network
from torch import Tensor
from transformers import DynamicCache

from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.bases.twins import twin
from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.weighted_texts import draw_weighted
from dinado.errors import UserError
from dinado.oracles import TokenOracle, token_dfa
from dinado.parameters.composed import Composed, Mixture
from dinado.parameters.full import Full
from dinado.parameters.parameterisation import Parameterisation
from dinado.rollouts.sampler import sample, uniforms

IDS = [3, 1, 2, 5, 5, 4]
ROWS = ([IDS, [0, 0, *IDS[2:]]], [[1] * 6, [0, 0, 1, 1, 1, 1]])
"""A text beside a shorter one, padded on the left, and their mask."""


def random_full(base: BaseLM) -> Full:
    """All weights, moved off their start."""
    scores = Full.inject(base, link="log_ratio", seed=0)
    perturb(scores.trained().values())
    return scores.eval()


KINDS = {
    "network": random_network,
    "tied": lambda base: random_network(base, "identity", head="tied", pointer=True, taps=[0.5, 1.0]),
    "lora": random_lora,
    "other lora": lambda base: random_lora(base, r=2, targets=r".*(_proj|c_attn|c_fc|lm_head)"),
    "full": random_full,
}
MIXES = {
    "all": {"network": 0.7, "lora": 0.5, "full": 0.4, "tied": 1.0, "other lora": 1.3},
    "networks": {"tied": 1.0, "network": 1.0},
    "a policy and a network": {"lora": 1.0, "network": 0.5},
    "policies": {"lora": 1.0, "other lora": 1.0, "full": 1.0},
    "policies that leave no p": {"lora": 0.75, "other lora": 0.25},
    "nothing": {"lora": 0.0, "network": 0.0},
}
CASES = [(name, mix) for name in ("llama", "gpt2") for mix in MIXES] + [("markov", "networks")]


def composed(name: str, strengths: dict[str, float], alpha: float = 1.0, **settings: object) -> ControlledLM:
    """The runs of these kinds around one copy of the weights."""
    base = base_lm(name, **settings)
    parts = [KINDS[kind](twin(base)) for kind in strengths]
    return ControlledLM(Composed(parts, list(strengths.values())), alpha).eval()


@cache
def alone(name: str, kind: str, temperature: float = 1.0) -> ControlledLM:
    """One run around a base of its own."""
    return ControlledLM(KINDS[kind](base_lm(name, temperature=temperature)))


@torch.no_grad()
def by_hand(
    name: str, strengths: dict[str, float], ids: Sequence[int], alpha: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """``[L, V]`` log q of one text: every run alone, without a cache."""
    texts = ids[:1], [*ids[1:], 0]
    log_p = total = plain_log_probs(base_lm(name).model, *texts, temperature)
    for kind, strength in strengths.items():
        log_q = plain_log_probs(alone(name, kind, temperature), *texts)
        total = total + alpha * strength * (log_q - log_p)
    return total.log_softmax(1)


@pytest.mark.parametrize(("name", "mix"), CASES)
@torch.no_grad()
def test_logits_are_p_and_the_sum_of_all_scores(name: str, mix: str) -> None:
    for alpha in (1.0, 0.5):
        model = composed(name, MIXES[mix], alpha, temperature=0.8)
        expected = by_hand(name, MIXES[mix], IDS, alpha, temperature=0.8)
        found = model(torch.tensor([IDS])).logits[0]
        torch.testing.assert_close(found.log_softmax(1), expected, rtol=1e-4, atol=1e-4)
        kept = model(torch.tensor([IDS]), logits_to_keep=2).logits[0]
        torch.testing.assert_close(kept, found[-2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "mix"), CASES)
@torch.no_grad()
def test_one_cache_serves_all(name: str, mix: str) -> None:
    model = composed(name, MIXES[mix])
    ids, mask = map(torch.tensor, ROWS)
    cache, logits = DynamicCache(), []
    for start, stop in ((0, 4), (4, 5), (5, 6)):
        out = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == stop
        logits.append(out.logits)
    assert len(cache.layers) == model.config.num_hidden_layers
    found = torch.cat(logits, 1).log_softmax(-1)
    torch.testing.assert_close(found[0], by_hand(name, MIXES[mix], IDS), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1, 2:], by_hand(name, MIXES[mix], IDS[2:]), rtol=1e-4, atol=1e-4)


def passes(model: ControlledLM) -> list[int]:
    """How often one forward pass runs each model's body: the base's, then those of the policies."""
    count: dict[int, int] = {}

    def hook(body: torch.nn.Module, *_: object) -> None:
        count[id(body)] = count.get(id(body), 0) + 1

    parts = model.scores.parts if isinstance(model.scores, Composed) else [model.scores]
    bodies = [model.base.model.base_model, *(part.policy.model.base_model for part in parts if part.is_policy)]
    distinct = list({id(body): body for body in bodies}.values())
    handles = [body.register_forward_pre_hook(hook) for body in distinct]
    model(torch.tensor([IDS]))
    for handle in handles:
        handle.remove()
    return [count.get(id(body), 0) for body in distinct]


def test_the_base_runs_once_and_only_where_it_is_needed() -> None:
    assert passes(composed("gpt2", {"network": 1.0, "tied": 0.5})) == [1]
    assert passes(composed("gpt2", {"network": 1.0, "lora": 1.0, "other lora": 1.0})) == [1, 1, 1]
    # The first run's adapters are in the base's modules: one pass with them off, and one with them on.
    assert passes(composed("gpt2", {"lora": 1.0, "other lora": 1.0})) == [2, 1]
    assert passes(composed("gpt2", {"lora": 0.5, "other lora": 0.5})) == [1, 1]
    assert passes(composed("gpt2", {"lora": 1.0, "other lora": 0.0})) == [1, 0]
    model = composed("gpt2", {"lora": 0.1, "full": 0.2, "other lora": 0.7})
    assert Mixture.of(model.scores, 1.0).of_base == 0 and not Mixture.of(model.scores, 1.0).runs_base


@torch.no_grad()
def test_a_run_without_strength_is_not_there() -> None:
    ids = torch.tensor([IDS])
    for left, out in (("lora", "network"), ("network", "lora"), ("lora", "other lora")):
        both = composed("llama", {left: 1.0, out: 0.0})
        one = alone("llama", left)
        assert torch.equal(both(ids).logits, one(ids).logits)
        assert both.config.num_hidden_layers == one.config.num_hidden_layers


@pytest.mark.parametrize(
    ("name", "mix"), [("llama", "all"), ("gpt2", "policies"), ("gpt2", "policies that leave no p")]
)
def test_beams_reorder_every_cache(name: str, mix: str) -> None:
    model = composed(name, MIXES[mix])
    ids, mask = model.base.encode_prompts(PROMPTS)
    settings = {"attention_mask": mask, "do_sample": False, "num_beams": 4, "num_return_sequences": 4}
    settings |= {"max_new_tokens": 5, "return_dict_in_generate": True, "output_scores": True}
    found, plain = (model.generate(ids, use_cache=cached, **settings) for cached in (True, False))
    assert torch.equal(found.sequences, plain.sequences)
    torch.testing.assert_close(found.sequences_scores, plain.sequences_scores, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_adapters_of_one_run_are_not_in_another() -> None:
    base = base_lm("gpt2")
    pretrained = base.model(torch.tensor([IDS])).logits
    first, second = random_lora(twin(base)), KINDS["other lora"](twin(base))
    ids = torch.tensor([IDS])
    for scores, kind in ((first, "lora"), (second, "other lora")):
        torch.testing.assert_close(
            scores.policy.model(ids).logits, KINDS[kind](base_lm("gpt2")).policy.model(ids).logits
        )
        with scores.off():
            assert torch.equal(scores.base.model(ids).logits, pretrained)
    assert torch.equal(base.model(ids).logits, pretrained) and not base.has_adapters
    shared = {id(parameter) for parameter in base.model.parameters()}
    for scores in (first, second):
        own = {id(p) for p in scores.trained().values()}
        assert {id(p) for p in scores.base.model.parameters()} == shared | own and not shared & own
    for inject in (random_lora, random_full, twin):
        with pytest.raises(UserError, match="has adapters of another run"):
            inject(first.base)


def test_what_cannot_be_composed() -> None:
    network: Parameterisation = random_network(base_lm("llama"))
    for other in (
        base_lm("llama", seed=1),
        base_lm("llama", temperature=0.5),
        base_lm("llama", system_prompt="Be brief."),
    ):
        with pytest.raises(UserError, match=r"run 2 \(base\) and run 1 \(base\) differ in base, temperature or prompt"):
            Composed([network, random_network(other)], [1.0, 1.0])
    for parts, alphas in (([network], [1.0, 1.0]), ([], [])):
        with pytest.raises(ValueError, match="a strength for each"):
            Composed(parts, alphas)


def test_samples_and_their_weights() -> None:
    """Sampled texts carry log q of the composed model, and weights p C / q of the product of the oracles."""
    mix = {"network": 1.0, "lora": 0.5}
    model = composed("gpt2", mix)
    ids, mask = model.base.encode_prompts(PROMPTS)
    drawn = sample(Decoder(model), ids, mask, model.base.eos_ids, uniforms(range(3), 4, 5, "test"))
    for row in (0, 5, 9):
        prompt = model.base.tokenizer(PROMPTS[drawn.prompt_of[row]].text)["input_ids"] or [0]
        log_q_LV = by_hand("gpt2", mix, [*prompt, *drawn.tokens[row]])[len(prompt) - 1 : -1]
        log_q_L = log_q_LV.gather(1, torch.tensor(drawn.tokens[row])[:, None])[:, 0]
        assert drawn.log_p[row] == pytest.approx(log_q_L.tolist(), abs=1e-3)
    oracle = TokenOracle(token_dfa(8, [3])) & TokenOracle(token_dfa(8, [], [4]))
    for found in draw_weighted(model, oracle, PROMPTS, texts=8, max_new_tokens=5, truncated="score", seed=0):
        ok = np.array([("3" in text.split()) and ("4" not in text.split()) for text in found.samples.texts])
        log_w = np.array(found.samples.log_p) - np.array(found.samples.log_q)
        assert found.log_weight_K == pytest.approx(np.where(ok, log_w, -np.inf))
