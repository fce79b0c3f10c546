"""The frozen base against plain forward passes: one sequence at a time, no padding, no cache.

Axes: P prompts, S prompt tokens, B responses, T response tokens, V vocabulary, D width.

Longer than 300 lines because it is about one thing: every path through a base is compared with the same plain pass.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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
    tiny_llama,
)
from torch import Tensor
from transformers import LlamaForCausalLM

from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.bases.markov import build_word_tokenizer
from dinado.bases.shared_prefix import align, similar_lengths
from dinado.errors import DataError, UserError
from dinado.objectives.vocabulary import token_log_probs
from dinado.parameters.full import Full
from dinado.parameters.lora import Lora
from dinado.parameters.parameterisation import Needs
from dinado.prompt import Prompt

TAPS = [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", BASES)
def test_states_are_those_of_each_sequence_alone(name: str) -> None:
    base = base_lm(name)
    batch = batch_of(base)
    states = base.states(batch, TAPS)
    for row, response in enumerate(RESPONSES):
        prompt = prompt_tokens(base, PROMPTS[PROMPT_OF[row]])
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            out = base.model.base_model(
                ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, use_cache=False
            )
        n, start = len(response), len(prompt)
        expected = out.last_hidden_state[0, start - 1 : -1]
        torch.testing.assert_close(states.hidden_BTD[row, :n], expected, rtol=1e-4, atol=1e-5)
        for depth, at_prompt, at_response in zip(TAPS, states.prompt_taps, states.response_taps, strict=True):
            hidden = out.hidden_states[round(depth * base.num_layers)]
            hidden = out.last_hidden_state if depth == 1.0 else hidden
            # A prompt position sees nothing of the response.
            torch.testing.assert_close(at_prompt[PROMPT_OF[row], -start:], hidden[0, :start], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(at_response[row, : n - 1], hidden[0, start:-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", BASES)
def test_log_probs_are_those_of_each_sequence_alone(name: str, temperature: float) -> None:
    base = base_lm(name, temperature=temperature)
    log_p_BT = base.log_probs(batch_of(base))
    for row, response in enumerate(RESPONSES):
        prompt = prompt_tokens(base, PROMPTS[PROMPT_OF[row]])
        log_p_TV = plain_log_probs(base.model, prompt, response, temperature)
        expected = log_p_TV.gather(1, torch.tensor(response)[:, None])[:, 0]
        assert log_p_BT[row].tolist() == pytest.approx([*expected.tolist()] + [0.0] * (6 - len(response)), abs=1e-5)


def test_temperature_changes_p() -> None:
    cold, plain = (base_lm("gpt2", temperature=t) for t in (0.6, 1.0))
    assert not torch.allclose(cold.log_probs(batch_of(plain)), plain.log_probs(batch_of(plain)))


@pytest.mark.parametrize("name", BASES)
def test_the_sampler_sees_the_same_distributions(name: str) -> None:
    """Left-padded prompts, two rows each, one token after another from the cache, some rows leaving on the way."""
    base = base_lm(name, temperature=0.8)
    decoder = Decoder(base.model, base.temperature)
    tokens = [[1, 4, 2], [5, 5, 2], [3, 1, 1], [2, 2, 6], [7, 1, 3], [6, 6, 6]]
    rows = list(range(6))
    with torch.no_grad():
        found = [decoder.start(*base.encode_prompts(PROMPTS), 2)]
        for step in range(2):
            if step == 1:
                rows = [0, 3, 4]
                decoder.keep(torch.tensor(rows))
            found.append(decoder.step(torch.tensor([tokens[row][step] for row in rows])))
    for step, (log_p_NV, present) in enumerate(zip(found, [range(6), range(6), rows], strict=True)):
        for index, row in enumerate(present):
            prompt = prompt_tokens(base, PROMPTS[row // 2])
            expected = plain_log_probs(base.model, prompt, tokens[row], 0.8)[step]
            torch.testing.assert_close(log_p_NV[index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_through_a_shared_prompt_are_those_of_plain_passes(name: str) -> None:
    """Two responses to one prompt: the prompt is run once, and adapters get the gradient of both."""
    base = base_lm(name)
    scores = random_lora(base)
    batch = batch_of(base)
    weight_BT = torch.linspace(-1, 2, batch.response_BT.numel()).view(batch.response_BT.shape)
    trained = [p for p in base.model.parameters() if p.requires_grad]
    hidden_BTD = scores.policy.states(batch, grad=True).hidden_BTD
    log_q_BT = token_log_probs(hidden_BTD, base.head, batch.response_BT[..., None], batch.response_mask_BT)[..., 0]
    ours = torch.autograd.grad((log_q_BT * weight_BT).sum(), trained)

    total = torch.zeros(())
    for row, response in enumerate(RESPONSES):
        prompt = prompt_tokens(base, PROMPTS[PROMPT_OF[row]])
        ids = torch.tensor([prompt + response])
        logits = base.model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, len(prompt) - 1 : -1]
        log_q_T = logits.log_softmax(1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(log_q_BT[row, : len(response)], log_q_T, rtol=1e-4, atol=1e-5)
        total = total + (log_q_T * weight_BT[row, : len(response)]).sum()
    assert len(trained) >= 8
    for a, b in zip(ours, torch.autograd.grad(total, trained), strict=True):
        assert float(b.abs().max()) > 0
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_states_without_grad_keep_no_graph() -> None:
    base = base_lm("gpt2")
    random_lora(base)
    assert not base.states(batch_of(base)).hidden_BTD.requires_grad
    assert base.states(batch_of(base), grad=True).hidden_BTD.requires_grad


# Adapters


def log_probs(base: BaseLM) -> Tensor:
    batch = batch_of(base)
    return base.log_probs(batch)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_switching_adapters_off_restores_the_base_exactly(name: str) -> None:
    base = base_lm(name)
    before = log_probs(base)
    fingerprint = base.fingerprint
    random_lora(base)
    trained = {n: p.requires_grad for n, p in base.model.named_parameters()}
    changed = log_probs(base)
    assert not torch.allclose(before, changed, atol=1e-2)
    with base.adapters(on=False):
        assert torch.equal(log_probs(base), before)
        assert {n: p.requires_grad for n, p in base.model.named_parameters()} == trained
        with base.adapters(on=True):
            assert torch.equal(log_probs(base), changed)
        assert torch.equal(log_probs(base), before)
    assert torch.equal(log_probs(base), changed)
    with pytest.raises(RuntimeError), base.adapters(on=False):
        raise RuntimeError
    assert torch.equal(log_probs(base), changed)
    assert base.fingerprint == fingerprint, "adapters are not part of p"
    assert {n: p.requires_grad for n, p in base.model.named_parameters()} == trained
    assert all(grad == ("lora_" in n) for n, grad in trained.items())


def test_fresh_adapters_change_nothing() -> None:
    base = base_lm("llama")
    before = log_probs(base)
    random_lora(base, size=0.0)
    assert torch.equal(log_probs(base), before)


def test_only_the_dropout_of_adapters_follows_the_mode() -> None:
    base = base_lm("llama")
    scores = random_lora(base, dropout=0.5)
    still, before = base_lm("llama"), log_probs(base)
    scores.train()
    assert not torch.equal(log_probs(base), log_probs(base))
    with base.adapters(on=False):
        assert torch.equal(log_probs(base), log_probs(still))
    scores.eval()
    assert torch.equal(log_probs(base), before)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_adapters_are_the_policy(name: str) -> None:
    base = base_lm(name)
    scores = random_lora(base)
    adapted, batch = log_probs(base), batch_of(base)
    names = {n for n, _ in base_lm(name).model.named_parameters()}
    merged = scores.fold()
    assert {n for n, _ in merged.named_parameters()} == names, "a plain model again"
    plain = BaseLM(merged, build_word_tokenizer(8))
    torch.testing.assert_close(plain.log_probs(batch), adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_on_the_output_embedding(name: str) -> None:
    base = base_lm(name)
    frozen, before = log_probs(base), base.head.weight_VD.clone()
    scores = random_lora(base, targets=["lm_head"])
    batch = batch_of(base)
    statistics = scores(batch, Needs(maximum=True)).statistics
    mask = batch.response_mask_BT.bool()
    for row in range(batch.num_rows):
        tokens = batch.response_BT[row][mask[row]].tolist()
        prompt = base.encode_prompts([PROMPTS[PROMPT_OF[row]]])[0][0].tolist()
        log_q_TV = plain_log_probs(base.model, prompt, tokens)
        expected = log_q_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(statistics.log_q[row][mask[row]], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(statistics.log_p, frozen * mask, rtol=1e-4, atol=1e-4)
    assert torch.equal(base.head.weight_VD, before)
    trained = [p for p in base.model.parameters() if p.requires_grad]
    assert all(g.any() for g in torch.autograd.grad(statistics.score.square().sum(), trained))


def test_adapters_that_would_reach_the_input_too_or_miss_their_dropout() -> None:
    base = base_lm("llama")
    with pytest.raises(UserError, match="dropout cannot reach"):
        Lora.inject(base_lm("llama"), link="identity", r=2, alpha=2.0, dropout=0.1, targets=["lm_head"], seed=0)
    base.model.lm_head.weight = base.model.model.embed_tokens.weight
    with pytest.raises(UserError, match="which this base reads its input with"):
        Lora.inject(base, link="identity", r=2, alpha=2.0, dropout=0.0, targets=["lm_head"], seed=0)


def test_a_full_policy_starts_at_the_base_and_leaves_it_alone() -> None:
    base = base_lm("gpt2")
    scores = Full.inject(base, link="identity", seed=0)
    assert torch.equal(log_probs(scores.policy), log_probs(base))
    assert all(p.requires_grad for p in scores.policy.model.parameters())
    assert not any(p.requires_grad for p in base.model.parameters())
    before = log_probs(base)
    with torch.no_grad():
        scores.policy.model.lm_head.weight.add_(torch.randn(scores.policy.model.lm_head.weight.shape))
    assert torch.equal(log_probs(base), before) and not torch.allclose(log_probs(scores.policy), before)


# Identity, mode, prompts


class Named(LlamaForCausalLM):
    """The same model by another name."""


def test_fingerprint_follows_everything_that_is_part_of_p() -> None:
    same, again = base_lm("llama"), base_lm("llama")
    assert same.fingerprint == again.fingerprint
    others = [
        base_lm("llama", seed=1),
        base_lm("llama", temperature=0.9),
        base_lm("llama", vocab_size=9),
        base_lm("llama", system_prompt="Be brief."),
        base_lm("gpt2"),
    ]
    moved = tiny_llama(8)
    with torch.no_grad():
        moved.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-3
    others.append(BaseLM(moved, build_word_tokenizer(8)))
    endless = tiny_llama(8)
    endless.generation_config.eos_token_id = [0, 3]
    others.append(BaseLM(endless, build_word_tokenizer(8)))
    assert others[-1].eos_ids == (0, 3)
    for settings in (
        {"rope_theta": 500.0},
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"max_position_embeddings": 32},
    ):
        others.append(BaseLM(tiny_llama(8, **settings), build_word_tokenizer(8)))
    others.append(BaseLM(tiny_llama(8).to(torch.bfloat16), build_word_tokenizer(8)))
    renamed = Named(tiny_llama(8).config)
    renamed.load_state_dict(same.model.state_dict())
    others.append(BaseLM(renamed, build_word_tokenizer(8)))
    eager = tiny_llama(8)
    eager.set_attn_implementation("eager")
    others.append(BaseLM(eager, build_word_tokenizer(8)))
    fingerprints = [same.fingerprint, *(other.fingerprint for other in others)]
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_frozen_base_never_leaves_eval_mode() -> None:
    base = BaseLM(tiny_llama(8, attention_dropout=0.5).train(), build_word_tokenizer(8))
    holder = torch.nn.ModuleList([base])
    batch = batch_of(base)
    for _ in range(2):
        assert not any(module.training for module in base.model.modules())
        assert torch.equal(base.log_probs(batch), base.log_probs(batch))
        holder.train()
    assert holder.training
    assert not any(p.requires_grad for p in base.parameters())


def test_prompts_are_padded_on_the_left_and_an_empty_one_is_the_start_token() -> None:
    base = base_lm("gpt2")
    ids_PS, mask_PS = base.encode_prompts(PROMPTS)
    assert ids_PS.tolist() == [[0, 0, 0, 0], [3, 1, 2, 5], [0, 0, 4, 2]]
    assert mask_PS.tolist() == [[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]]
    assert base.decode([3, 7, 0]) == "3 7" and base.decode([0]) == ""


TEMPLATE = "{% for m in messages %}{{ '1 ' if m.role == 'system' else '2 ' }}{{ m.content }} {% endfor %}3"


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, [2, 5, 6, 3]),
        ({"system_prompt": "4"}, [1, 4, 2, 5, 6, 3]),
        ({"chat_template": False}, [5, 6]),
    ],
)
def test_chat_template(settings: dict, tokens: list[int]) -> None:
    tokenizer = build_word_tokenizer(8)
    tokenizer.chat_template = TEMPLATE
    base = BaseLM(tiny_llama(8), tokenizer, **settings)
    assert base.encode_prompts([Prompt("0", "5 6")])[0].tolist() == [tokens]


class Squared(LlamaForCausalLM):
    """A model whose logits are no linear map of its states."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + 0.1 * out.logits.square()
        return out


def test_logits_that_are_not_a_linear_map_are_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"base\.name=mine: Squared: its logits are not a linear map"):
        BaseLM(Squared(tiny_llama(8).config), build_word_tokenizer(8), name="mine")


def test_a_model_without_an_end_is_refused() -> None:
    model, tokenizer = tiny_llama(8), build_word_tokenizer(8)
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        BaseLM(model, tokenizer)


def test_saved_models_load_as_they_were(tmp_path: Path) -> None:
    base = base_lm("llama")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    loaded = BaseLM.load(str(tmp_path))
    assert loaded.fingerprint == base.fingerprint
    assert torch.equal(log_probs(loaded), log_probs(base))
    assert loaded.model.dtype == torch.float32
    half = BaseLM.load(str(tmp_path), dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert log_probs(half).dtype == torch.float32, "reductions over the vocabulary stay in float32"
    assert math.isclose(float(log_probs(half).sum()), float(log_probs(base).sum()), rel_tol=0.1)


def test_a_base_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError) as caught:
        BaseLM.load(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_responses_are_cut_where_most_padding_is_saved() -> None:
    def mask(*lengths: int) -> Tensor:
        return (torch.arange(9) < torch.tensor(lengths)[:, None]).long()

    order_B, chunks = similar_lengths(mask(9, 2, 8, 0, 1))
    assert order_B.tolist() == [3, 4, 1, 2, 0]
    assert [(rows.tolist(), width) for rows, width in chunks] == [([3, 4, 1], 2), ([2, 0], 9)]
    for lengths in ((5, 5, 5), (9, 8, 9), (3,), (0, 0)):
        _, chunks = similar_lengths(mask(*lengths))
        assert [(len(rows), width) for rows, width in chunks] == [(len(lengths), max(1, *lengths, 1))]


@pytest.mark.parametrize("of_policy", [False, True])
def test_a_norm_head_may_read_the_base_or_the_policy(of_policy: bool) -> None:
    base = base_lm("llama")
    scores = random_lora(base)
    batch = batch_of(base)
    scored = scores(batch, Needs(taps=(0.5, 1.0), of_policy=of_policy))
    with base.adapters(on=of_policy):
        states = base.states(batch, [0.5, 1.0])
    for tap, at_prompt, at_response in zip(scored.taps, states.prompt_taps, states.response_taps, strict=True):
        assert not tap.requires_grad
        torch.testing.assert_close(tap, align(at_prompt, at_response, batch.prompt_of_row_B), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scored.taps[1], scored.own_state_BTE if of_policy else states.hidden_BTD)
