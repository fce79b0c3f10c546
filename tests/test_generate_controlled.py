"""``generate()`` of a controlled model: the modes of transformers, alpha of one call, and caches.

Axes: N rows, L positions, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import build
from helpers import base_lm, random_full, random_lora, random_network
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    MinNewTokensLengthLogitsProcessor,
    StoppingCriteria,
    SuppressTokensLogitsProcessor,
)
from transformers.generation import BaseStreamer

from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_word_tokenizer
from dinado.control.controlled_lm import ControlledLM
from dinado.parameters.parameterisation import Parameterisation
from dinado.prompt import Prompt

NEW = 6
KINDS: dict[str, Callable[[BaseLM], Parameterisation]] = {
    "network": random_network,
    "pointer": lambda base: random_network(base, "identity", head="tied", pointer=True),
    "lora": random_lora,
    "full": random_full,
}
CASES = [("gpt2", "network"), ("gpt2", "lora"), ("llama", "pointer"), ("llama", "full")]
IDS = torch.tensor([[3, 1, 2, 5, 5, 4]])
PROMPTS = [Prompt("a", "3 1 2 5"), Prompt("b", "4"), Prompt("c", "7 6 2")]
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beam sampling": {"do_sample": True, "num_beams": 3},
    "truncated": {"do_sample": True, "top_k": 3, "top_p": 0.9, "temperature": 0.7},
}


def controlled(on: str, kind: str, alpha: float = 1.0, **settings: Any) -> ControlledLM:
    return ControlledLM(KINDS[kind](base_lm(on, **settings)), alpha).eval()


def run(model: Any, ids: Tensor = IDS, **settings: Any) -> list[list[int]]:
    """Generate with torch's seed set."""
    torch.manual_seed(5)
    settings.setdefault("attention_mask", torch.ones_like(ids))
    out: Tensor = model.generate(ids, **({"max_new_tokens": NEW} | settings))
    return out[:, ids.shape[1] :].tolist()


def encoded(model: ControlledLM) -> tuple[Tensor, dict[str, Tensor]]:
    ids, mask = model.base.encode_prompts(PROMPTS)
    assert mask.min() == 0
    return ids, {"attention_mask": mask}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("on", "kind"), CASES)
def test_without_control_it_generates_what_the_base_does(on: str, kind: str, mode: str) -> None:
    model = controlled(on, kind, alpha=0.0)
    ids, mask = encoded(model)
    # What a base says of itself would be mixed into the call.
    plain = GenerationConfig(eos_token_id=0, pad_token_id=0, top_k=0) if mode != "truncated" else None
    model.base.model.generation_config = plain or GenerationConfig(eos_token_id=0, pad_token_id=0)
    found = run(model, ids, **mask, **MODES[mode])
    with model.scores.off():
        assert found == run(model.base.model, ids, **mask, **MODES[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("on", "kind"), CASES)
def test_alpha_of_a_call_is_that_of_a_model(on: str, kind: str, mode: str) -> None:
    model = controlled(on, kind)
    ids, mask = encoded(model)
    found = {alpha: run(model, ids, alpha=alpha, **mask, **MODES[mode]) for alpha in (0.0, 0.5, 1.0, 2.0)}
    for alpha, texts in found.items():
        assert texts == run(ControlledLM(model.scores, alpha), ids, **mask, **MODES[mode])
    assert found[1.0] == run(model, ids, **mask, **MODES[mode])
    assert found[0.0] != found[2.0], "the strength has an effect"


@pytest.mark.parametrize("mode", ["greedy", "beams", "sampling"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(("on", "kind"), CASES)
def test_the_joint_cache_changes_nothing(on: str, kind: str, alpha: float, mode: str) -> None:
    model = controlled(on, kind, alpha)
    ids, mask = encoded(model)
    assert run(model, ids, **mask, **MODES[mode]) == run(model, ids, use_cache=False, **mask, **MODES[mode])
    assert run(model, ids, prefill_chunk_size=2, **mask, **MODES[mode]) == run(model, ids, **mask, **MODES[mode])


@pytest.mark.parametrize(("name", "kind"), [("llama", "network"), ("gpt2", "lora")])
def test_a_batch_of_32_mixed_lengths_is_one_by_one(name: str, kind: str) -> None:
    base = BaseLM(build(name), build_word_tokenizer(50))
    model = ControlledLM(KINDS[kind](base)).eval()
    stream = torch.Generator().manual_seed(1)
    words = [torch.randint(1, 50, (1 + row % 9,), generator=stream).tolist() for row in range(32)]
    prompts = [Prompt(str(row), " ".join(map(str, tokens))) for row, tokens in enumerate(words)]

    def texts(chosen: list[Prompt]) -> tuple[list[list[int]], Tensor]:
        ids, mask = base.encode_prompts(chosen)
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            return_dict_in_generate=True,
            output_logits=True,
        )
        new_NT = out.sequences[:, ids.shape[1] :]
        log_q_NTV = torch.stack(out.logits, 1).log_softmax(2)
        return new_NT.tolist(), log_q_NTV.gather(2, new_NT[..., None])[..., 0]

    together, log_q_NT = texts(prompts)
    for row, prompt in enumerate(prompts):
        (alone,), log_q_1T = texts([prompt])
        assert together[row] == alone
        torch.testing.assert_close(log_q_NT[row], log_q_1T[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("on", "kind"), CASES)
def test_a_beginning_of_the_response_is_continued(on: str, kind: str) -> None:
    """Prompt and beginning in one call, from a cache of the first call, and from a copy of it."""
    model = controlled(on, kind, 0.5)
    cache = DynamicCache()
    whole = run(model, do_sample=False, min_new_tokens=NEW, past_key_values=cache)[0]
    longer = torch.cat([IDS, torch.tensor([whole])], 1)
    rest = run(model, longer, do_sample=False)[0]
    assert run(model, longer[:, :-2], do_sample=False, max_new_tokens=2 + NEW)[0] == whole[-2:] + rest
    assert run(model, longer, do_sample=False, past_key_values=cache)[0] == rest


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(("on", "kind"), CASES)
def test_candidates_change_no_greedy_text(on: str, kind: str, alpha: float) -> None:
    """Assisted decoding crops the joint cache after every rejected candidate."""
    model = controlled(on, kind, alpha)
    wanted = run(model, do_sample=False, max_new_tokens=12)
    assert run(model, do_sample=False, max_new_tokens=12, prompt_lookup_num_tokens=3) == wanted
    with model.scores.off():
        assert run(model, do_sample=False, max_new_tokens=12, assistant_model=model.base.model) == wanted


# What a user brings


class Kept(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.reshape(-1).tolist()

    def end(self) -> None:
        self.ended = True


class AfterThree(StoppingCriteria):
    """Stops after three tokens."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= IDS.shape[1] + 3)


@pytest.mark.parametrize("kind", ["network", "lora"])
def test_streamers_criteria_and_processors(kind: str) -> None:
    model = controlled("llama", kind)
    streamer = Kept()
    (text,) = run(model, do_sample=False, streamer=streamer)
    assert streamer.tokens == IDS[0].tolist() + text and streamer.ended
    assert run(model, do_sample=False, stopping_criteria=[AfterThree()]) == [text[:3]]
    processors = [
        SuppressTokensLogitsProcessor([text[0]], device="cpu"),
        MinNewTokensLengthLogitsProcessor(IDS.shape[1], NEW, 0, device="cpu"),
    ]
    expected = IDS.tolist()[0]
    for _ in range(NEW):
        logits_V = model(torch.tensor([expected])).logits[0, -1]
        logits_V[[0, text[0]]] = -torch.inf
        expected.append(int(logits_V.argmax()))
    assert run(model, do_sample=False, logits_processor=processors) == [expected[IDS.shape[1] :]]


@pytest.mark.parametrize(("alpha", "kind"), [(1.0, "network"), (0.5, "lora")])
def test_returned_scores_are_log_q(alpha: float, kind: str) -> None:
    model = controlled("gpt2", kind)
    settings = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_scores": True, "alpha": alpha}
    torch.manual_seed(0)
    out = model.generate(IDS, **settings)
    steps = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    log_q_LV = model(out.sequences, alpha=alpha).logits[0].log_softmax(1)
    new = out.sequences[0, IDS.shape[1] :]
    log_q_T = log_q_LV[IDS.shape[1] - 1 : -1].gather(1, new[:, None])[:, 0]
    torch.testing.assert_close(steps[0], log_q_T, rtol=0, atol=1e-4)
    assert isinstance(model(IDS, return_dict=False), tuple)


@pytest.mark.parametrize("on", ["gpt2", "llama"])
@torch.no_grad()
def test_the_policy_is_on_even_where_the_adapters_are_off(on: str) -> None:
    model = controlled(on, "lora")
    wanted = model(IDS).logits, model(IDS, alpha=0.5).logits
    with model.scores.off():
        assert torch.equal(model(IDS).logits, wanted[0]) and torch.equal(model(IDS, alpha=0.5).logits, wanted[1])
        assert not model.base.switched_on
    assert model.base.switched_on
