"""The control as a logits processor: the base's own ``generate()`` then writes what the controlled model does."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from helpers import base_lm, random_full, random_lora, random_network, tiny_llama
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, SuppressTokensLogitsProcessor

from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_word_tokenizer
from dinado.control.control_processor import ControlLogitsProcessor
from dinado.control.controlled_lm import ControlledLM
from dinado.errors import UserError
from dinado.parameters.parameterisation import Parameterisation
from dinado.prompt import Prompt

NEW = 6
IDS = torch.tensor([[3, 1, 2, 5, 5, 4]])
PROMPTS = [Prompt("a", "3 1 2 5"), Prompt("b", "4"), Prompt("c", "7 6 2")]
KINDS = {
    "network": random_network,
    "pointer": lambda base: random_network(base, "identity", head="tied", pointer=True),
    "lora": random_lora,
    "full": random_full,
}
CASES = [("gpt2", "network"), ("gpt2", "lora"), ("llama", "pointer"), ("llama", "full"), ("markov", "network")]
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 3},
    "beam sampling": {"do_sample": True, "num_beams": 3},
}


def build(on: str, kind: str, **settings: Any) -> Parameterisation:
    base = base_lm(on, **settings)
    base.model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0, top_k=0)
    scores: Parameterisation = KINDS[kind](base)
    return scores


def run(model: Any, ids: Tensor = IDS, **settings: Any) -> list[list[int]]:
    """Generate with torch's seed set."""
    torch.manual_seed(5)
    settings.setdefault("attention_mask", torch.ones_like(ids))
    out: Tensor = model.generate(ids, **({"max_new_tokens": NEW} | settings))
    return out[:, ids.shape[1] :].tolist()


def processed(scores: Parameterisation, processor: Any, ids: Tensor = IDS, **settings: Any) -> list[list[int]]:
    with scores.off():
        return run(scores.base.model, ids, logits_processor=LogitsProcessorList([processor]), **settings)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(("on", "kind"), CASES)
def test_it_writes_what_the_controlled_model_writes(on: str, kind: str, alpha: float, mode: str) -> None:
    """Prompts of mixed lengths, a base whose temperature is not 1, and two calls with one processor."""
    scores = build(on, kind, temperature=0.8)
    model = ControlledLM(scores, alpha).eval()
    ids, mask = scores.base.encode_prompts(PROMPTS)
    wanted = run(model, ids, attention_mask=mask, **MODES[mode])
    assert wanted != run(model, ids, attention_mask=mask, alpha=-2.0, **MODES[mode]), "the strength has an effect"
    processor = ControlLogitsProcessor(scores, alpha, attention_mask=mask)
    for _ in range(2):
        assert processed(scores, processor, ids, attention_mask=mask, **MODES[mode]) == wanted


@pytest.mark.parametrize(("on", "kind"), CASES[:3])
def test_beam_scores_are_log_q(on: str, kind: str) -> None:
    scores = build(on, kind)
    settings = {"num_beams": 4, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    settings |= {"max_new_tokens": NEW, "attention_mask": torch.ones_like(IDS)}
    wanted = ControlledLM(scores).eval().generate(IDS, **settings).sequences_scores
    with scores.off():
        out = scores.base.model.generate(IDS, logits_processor=[ControlLogitsProcessor(scores)], **settings)
    torch.testing.assert_close(out.sequences_scores, wanted, rtol=0, atol=1e-4)


def test_only_new_tokens_are_read() -> None:
    """A pass over the prompt, then one token at a time, also where beams change places."""
    scores = build("llama", "network")
    lengths: list[int] = []
    body = scores.network.body  # type: ignore[union-attr]
    hook = body.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    processed(scores, ControlLogitsProcessor(scores), num_beams=4, do_sample=False, min_new_tokens=NEW)
    hook.remove()
    assert lengths == [IDS.shape[1]] + [1] * (NEW - 1)


@torch.no_grad()
def test_any_order_of_texts_is_read_right() -> None:
    """Longer, shorter, reordered, changed and unrelated texts, against a processor that has seen nothing."""
    scores = build("gpt2", "pointer")
    used = ControlLogitsProcessor(scores)
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 8, (4, 9), generator=stream)
    changed = ids.clone()
    changed[1, 5] = ids[1, 5] % 7 + 1
    texts = [ids, ids[[2, 2, 0, 1]], ids[:, :4], changed, changed[:2], 8 - ids, ids[:, :1], ids]
    for text in texts:
        logits = scores.base.model(text).logits[:, -1]
        fresh = ControlLogitsProcessor(scores)(text, logits)
        torch.testing.assert_close(used(text, logits), fresh, rtol=0, atol=1e-4)
        wanted = ControlledLM(scores)(text).logits[:, -1].log_softmax(1)
        torch.testing.assert_close(fresh.log_softmax(1), wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_training_step_makes_the_cache_stale() -> None:
    scores = build("gpt2", "lora")
    processor = ControlLogitsProcessor(scores)
    with scores.off():
        logits = scores.base.model(IDS).logits[:, -1]
        before = processor(IDS, logits)
        for parameter in scores.trained().values():
            parameter.mul_(1.5)
        after = processor(IDS, logits)
        torch.testing.assert_close(after, ControlLogitsProcessor(scores)(IDS, logits), rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 0.01


@torch.no_grad()
def test_an_interrupted_pass_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = build("llama", "full")
    processor = ControlLogitsProcessor(scores)
    logits = scores.base.model(IDS).logits
    processor(IDS[:, :4], logits[:, 3])
    last = scores.policy.model.model.layers[1]  # type: ignore[union-attr,index]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(*args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(last, "forward", stop)
        processor(IDS[:, :5], logits[:, 4])
    fresh = ControlLogitsProcessor(scores)(IDS[:, :5], logits[:, 4])
    torch.testing.assert_close(processor(IDS[:, :5], logits[:, 4]), fresh, rtol=0, atol=1e-5)


def test_processors_before_it_forbid_tokens() -> None:
    scores = build("llama", "network")
    model = ControlledLM(scores).eval()
    settings: dict[str, Any] = {"suppress_tokens": [5, 4], "num_beams": 3, "do_sample": False}
    wanted = run(model, **settings)
    assert not {5, 4} & set(wanted[0]) and 5 in run(model, num_beams=3, do_sample=False)[0]
    assert processed(scores, ControlLogitsProcessor(scores), **settings) == wanted
    listed = [SuppressTokensLogitsProcessor([5, 4], device="cpu"), ControlLogitsProcessor(scores)]
    assert run(scores.base.model, logits_processor=listed, num_beams=3, do_sample=False) == wanted


@pytest.mark.parametrize("extra", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}])
def test_caches_and_candidates_of_the_call_do_not_matter(extra: dict[str, Any]) -> None:
    scores = build("llama", "lora")
    settings = {"do_sample": False, "max_new_tokens": 12}
    wanted = run(ControlledLM(scores).eval(), **settings)
    assert processed(scores, ControlLogitsProcessor(scores), **settings, **extra) == wanted


def padded_base() -> BaseLM:
    """A base with a padding token of its own, 7, which begins no text."""
    model, tokenizer = tiny_llama(8), build_word_tokenizer(8)
    tokenizer.pad_token = "7"
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=7, top_k=0)
    return BaseLM(model, tokenizer)


@pytest.mark.parametrize("mode", MODES)
def test_padding_of_a_token_of_its_own_is_seen(mode: str) -> None:
    scores = random_network(padded_base())
    ids, mask = scores.base.encode_prompts([Prompt("a", "3 1 2 5"), Prompt("b", "4")])
    assert ids[1].tolist() == [7, 7, 7, 4]
    wanted = run(ControlledLM(scores).eval(), ids, attention_mask=mask, **MODES[mode])
    processor = ControlLogitsProcessor(scores)
    assert processed(scores, processor, ids, attention_mask=mask, **MODES[mode]) == wanted
    assert processed(scores, processor, ids.flip(0), attention_mask=mask.flip(0), **MODES["greedy"])


def refused(says: str, scores: Parameterisation, processor: Any, ids: Tensor = IDS, **settings: Any) -> None:
    off: AbstractContextManager[None] = scores.off()
    with off, pytest.raises(UserError, match=says) as caught:
        run(scores.base.model, ids, logits_processor=[processor], **settings)
    assert "\n" not in str(caught.value)


def test_padding_that_may_be_text_is_refused() -> None:
    scores = build("gpt2", "network")
    ids, mask = scores.base.encode_prompts(PROMPTS)
    refused("give ControlLogitsProcessor the attention_mask", scores, ControlLogitsProcessor(scores), ids)
    processor = ControlLogitsProcessor(scores, attention_mask=mask)
    processed(scores, processor, ids, attention_mask=mask)
    refused("belongs to other prompts", scores, processor, (8 - ids) % 8, attention_mask=mask)
    fresh = ControlLogitsProcessor(scores, attention_mask=mask)
    refused("give the mask of the call's own prompts", scores, fresh, IDS)
    # A mask of other padding than the call's shows in the scores.
    wrong = ControlLogitsProcessor(scores, attention_mask=torch.ones_like(mask))
    refused("not those of the base", scores, wrong, ids, attention_mask=mask)


def test_other_models_and_scores_are_refused() -> None:
    scores = build("gpt2", "lora")
    with pytest.raises(UserError, match="adapters are on"):
        run(scores.base.model, logits_processor=[ControlLogitsProcessor(scores)])
    refused("not those of the base", scores, ControlLogitsProcessor(scores), guidance_scale=3.0)
    with scores.off(), pytest.raises(UserError, match="not those of the base"):
        run(tiny_llama(8), logits_processor=[ControlLogitsProcessor(scores)])
    with scores.off(), pytest.raises(UserError, match="another model"):
        run(tiny_llama(9), logits_processor=[ControlLogitsProcessor(scores)])
    network = random_network(base_lm("llama"))
    with pytest.raises(UserError, match="not those of the base"):
        run(ControlledLM(network).eval(), logits_processor=[ControlLogitsProcessor(network)])
    with pytest.raises(UserError, match="without token ids"):
        network.base.model.generate(
            inputs_embeds=torch.zeros(1, 3, 32), max_new_tokens=2, logits_processor=[ControlLogitsProcessor(network)]
        )
    with pytest.raises(UserError, match="one finite number"):
        ControlLogitsProcessor(network, float("nan"))
