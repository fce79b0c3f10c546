"""Where a base ends: windows that count padding, contexts, and models that are wrong on some path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import SMALL, base_lm, batch_of, random_network, tiny_llama
from transformers import (
    GPTNeoConfig,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dinado.bases import causal, shared_prefix
from dinado.bases.architecture import window_of
from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.bases.markov import build_word_tokenizer
from dinado.control.controlled_lm import ControlledLM
from dinado.errors import UserError
from dinado.prompt import Prompt
from dinado.rollouts.beam import beam_search

PROMPTS = (Prompt("a", "3 1 2 5 6 7 8"), Prompt("b", "3 1 4"), Prompt("c", "3 1 2"))
RESPONSES = ([1, 4, 9, 8, 7, 6, 5, 0], [5, 5, 2, 3, 1, 0], [9, 0], [2, 1, 7, 7, 7])


def windowed(window: int | None) -> Any:
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=50, num_key_value_heads=2, sliding_window=window, **SMALL)  # type: ignore[arg-type]
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize(("window", "shares"), [(4, False), (13, False), (14, True), (None, True)])
def test_a_common_beginning_is_shared_within_the_window(
    window: int | None, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest prompt has 7 tokens and the longest response 8, of which 7 are read."""
    asked = []
    find = shared_prefix.common_prefix
    base = BaseLM(windowed(window), build_word_tokenizer(50))
    monkeypatch.setattr(shared_prefix, "common_prefix", lambda *given: asked.append(find(*given)) or asked[-1])
    batch = batch_of(base, PROMPTS, RESPONSES, (0, 1, 2, 1))
    torch.testing.assert_close(base.log_probs(batch), batch.log_p_BT, rtol=0, atol=1e-4)
    assert asked == ([2] if shares else [])


def test_a_base_whose_window_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "window_of", lambda model: None)
    model = windowed(4)
    with pytest.raises(
        UserError, match=r"MistralForCausalLM: log-probabilities in teacher forcing differ by \d\.\d+ n"
    ):
        BaseLM(model, build_word_tokenizer(50), name="mine")


def test_windows_are_read_from_the_configuration() -> None:
    def of(config: Any) -> int | None:
        return window_of(type("Model", (), {"config": config}))

    assert of(MistralConfig(sliding_window=None)) is None and of(MistralConfig(sliding_window=8)) == 8
    assert of(Qwen2Config()) is None
    assert of(Qwen2Config(use_sliding_window=True, sliding_window=9, max_window_layers=2, num_hidden_layers=4)) == 9
    assert of(GPTNeoConfig(window_size=5)) == 5 and of(MptConfig()) == 0
    assert of(tiny_llama(8).config) is None


def test_biases_by_slot_share_nothing() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": 50}
    model = MptForCausalLM(MptConfig(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.3)).eval()
    base = BaseLM(model, build_word_tokenizer(50))
    batch = batch_of(base, PROMPTS, RESPONSES, (0, 1, 2, 1))
    torch.testing.assert_close(base.log_probs(batch), batch.log_p_BT, rtol=0, atol=1e-4)


@torch.no_grad()
def test_beams_of_a_network_on_windowed_layers() -> None:
    """Scores of a beam search are those of the model itself, with all of the network's keys in its cache."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=0,
        **SMALL,  # type: ignore[arg-type]
    )
    assert set(config.layer_types) == {"sliding_attention"}
    base = BaseLM(Qwen2ForCausalLM(config).eval(), build_word_tokenizer(50))
    for pointer in (False, True):
        scores = random_network(base, "identity", head="tied", pointer=pointer)
        model = ControlledLM(scores).eval()
        ids_PS, mask_PS = base.encode_prompts(PROMPTS)
        out = model.generate(
            ids_PS,
            attention_mask=mask_PS,
            num_beams=3,
            do_sample=False,
            max_new_tokens=8,
            length_penalty=0.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        for row, score in enumerate(out.sequences_scores.tolist()):
            prompt = ids_PS[row][mask_PS[row].bool()].tolist()
            tokens = out.sequences[row, ids_PS.shape[1] :].tolist()
            tokens = tokens[: tokens.index(0) + 1] if 0 in tokens else tokens
            ids = torch.tensor([[*prompt, *tokens]])
            log_q = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(1)
            assert score == pytest.approx(float(log_q.gather(1, torch.tensor(tokens)[:, None]).sum()), abs=1e-3)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "positions"])
def test_texts_beyond_the_context_are_refused(kind: str) -> None:
    """Ten tokens of context: a prompt of eight and responses of up to three, of which the last is not read."""
    if kind == "positions":
        base = base_lm("gpt2")
        base.context = 10
        base.model.config.n_positions = 10
    else:
        longrope = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 10}
        rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **(longrope if kind == "longrope" else {})}
        model = tiny_llama(8, rope_parameters=rope, max_position_embeddings=10 if kind == "dynamic" else 24)
        base = BaseLM(model, build_word_tokenizer(8))
    assert base.context == 10
    prompts = (Prompt("a", "3 1 2 5 6 7 1 2"), Prompt("b", "4"))
    ids_PS, mask_PS = base.encode_prompts(prompts)
    fits = batch_of(base, prompts, ([1, 0], [2, 2, 2, 3, 1, 5, 4, 4, 0]), (0, 1))
    torch.testing.assert_close(base.log_probs(fits), fits.log_p_BT, rtol=0, atol=1e-4)
    with torch.no_grad():
        Decoder(base.model).start(ids_PS, mask_PS, 1, 3)
        controlled = ControlledLM(random_network(base)).eval()
        controlled(torch.zeros(1, 10).long())
        wrong = "prompt and response take 11 tokens, and the base reads at most 10"
        with pytest.raises(UserError, match=wrong):
            base.log_probs(batch_of(base_lm("llama"), prompts, ([1, 4, 1, 0], [2]), (0, 1)))
        with pytest.raises(UserError, match=wrong):
            Decoder(base.model).start(ids_PS, mask_PS, 1, 4)
        with pytest.raises(UserError, match=wrong):
            beam_search(base, ids_PS, mask_PS, 2, 4)
        with pytest.raises(UserError, match=wrong):
            controlled(torch.zeros(1, 11).long())


def test_a_model_that_ignores_its_mask_is_refused() -> None:
    model = tiny_llama(8)
    forward = model.model.forward
    model.model.forward = lambda *args, attention_mask=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(
        UserError, match=r"in (teacher forcing|sampling) differ by [\d.]+ nats from a plain pass"
    ) as found:
        BaseLM(model, build_word_tokenizer(8), name="mine")
    assert "\n" not in str(found.value)


def test_a_model_outside_the_interface_is_refused() -> None:
    model = tiny_llama(8)
    forward = model.model.forward

    def own(input_ids: Any, use_cache: bool = False, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None:
            raise RuntimeError("no\ncache")
        return forward(input_ids, use_cache=False, **kwargs)

    model.model.forward = own
    with pytest.raises(UserError, match=r"cannot be run on shared prompts with a cache \(no cache\)"):
        BaseLM(model, build_word_tokenizer(8), name="mine")
