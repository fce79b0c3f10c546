"""The contract of a base.

Axes: B responses, T tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from helpers import batch_of, plain_log_probs, prompt_tokens
from torch import nn

from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.prompt import Prompt
from dinado.rollouts.sampler import sample, uniforms

MakeBase = Callable[[float], BaseLM]
"""Makes the base anew, with a temperature. Its tokenizer reads words of digits, and token 0 ends a response."""

PROMPTS = (Prompt("a", ""), Prompt("b", "3 1 2 5"), Prompt("c", "3 1 4"), Prompt("d", "3 1 2"))
"""An empty prompt, and three that begin alike."""
RESPONSES = ([1, 4, 0], [5, 5, 2, 3, 1, 0], [0], [2, 1], [5, 5, 0])
PROMPT_OF = (0, 1, 2, 3, 1)
TEMPERATURE = 1.3


def log_probs_are_those_of_plain_passes(make: MakeBase) -> None:
    """Check that a batch of prompts with a common beginning gives every response what a pass of its own gives it."""
    base = make(TEMPERATURE)
    batch = batch_of(base, PROMPTS, RESPONSES, PROMPT_OF)  # log p of plain passes
    torch.testing.assert_close(base.log_probs(batch), batch.log_p_BT, rtol=0, atol=1e-4)
    states = base.states(batch, (0.0, 1.0))
    log_p_BTV = base.head.logits(states.hidden_BTD).log_softmax(-1)
    log_p_BT = log_p_BTV.gather(-1, batch.response_BT[..., None])[..., 0] * batch.response_mask_BT
    torch.testing.assert_close(log_p_BT, batch.log_p_BT, rtol=0, atol=1e-4)
    assert [len(taps) for taps in (states.prompt_taps, states.response_taps)] == [2, 2]


def samples_record_their_log_probs(make: MakeBase) -> None:
    """Check that the sampler records log p as teacher forcing finds it."""
    base = make(TEMPERATURE)
    ids_PS, mask_PS = base.encode_prompts(PROMPTS)
    decoder = Decoder(base.model, base.temperature)
    samples = sample(decoder, ids_PS, mask_PS, base.eos_ids, uniforms(range(len(PROMPTS)), 3, 6, "contract"))
    for tokens, log_p, row in zip(samples.tokens, samples.log_p, samples.prompt_of, strict=True):
        log_p_TV = plain_log_probs(base.model, prompt_tokens(base, PROMPTS[row]), tokens, base.temperature)
        forced_T = log_p_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(log_p), forced_T, rtol=0, atol=1e-4)
    assert {tokens[-1] in base.eos_ids for tokens in samples.tokens} == set(samples.finished)


def prompts_are_padded_on_the_left(make: MakeBase) -> None:
    """Check that real tokens of a prompt stand on the right, and an empty prompt has one."""
    base = make(1.0)
    ids_PS, mask_PS = base.encode_prompts(PROMPTS)
    assert ids_PS.shape == mask_PS.shape and ids_PS.dtype == torch.long
    assert (mask_PS.diff(dim=1) >= 0).all() and mask_PS[:, -1].all()
    for index, prompt in enumerate(PROMPTS):
        alone = base.encode_prompts([prompt])[0][0].tolist()
        assert ids_PS[index][mask_PS[index].bool()].tolist() == alone


def the_fingerprint_names_p(make: MakeBase) -> None:
    """Check that the same weights have the same fingerprint; another temperature is another p."""
    assert make(1.0).fingerprint == make(1.0).fingerprint
    assert make(1.0).fingerprint != make(TEMPERATURE).fingerprint


def texts_have_no_special_tokens(make: MakeBase) -> None:
    """Check that the end of a response is not part of its text."""
    base = make(1.0)
    assert base.decode([3, 5, base.eos_ids[0]]) == base.decode([3, 5]) == "3 5"
    assert base.decode([base.eos_ids[0]]) == ""


def switches_nest(make: MakeBase) -> None:
    """Check that injected weights can be switched on inside a block in which they are off, and switch back."""
    base, now, seen = make(1.0), [True], []

    @contextmanager
    def switch(model: nn.Module, on: bool) -> Iterator[None]:
        before, now[0] = now[0], on
        seen.append(model is base.model)
        try:
            yield
        finally:
            now[0] = before

    base.add_switch(switch)
    base.add_switch(switch)
    with base.adapters(on=False):
        assert not now[0]
        with base.adapters(on=True):
            assert now[0]
        assert not now[0]
    assert now[0] and seen == [True, True], "registered twice, a switch is called once"
    base.remove_switch(switch)
    with base.adapters(on=False):
        assert now[0]


def the_base_is_frozen(make: MakeBase) -> None:
    """Check that no weight of a base takes a gradient, and it never leaves eval mode."""
    base = make(1.0).train()
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert not any(module.training for module in base.model.modules())
    assert not base.states(batch_of(base, PROMPTS, RESPONSES, PROMPT_OF)).hidden_BTD.requires_grad


CHECKS = (
    log_probs_are_those_of_plain_passes,
    samples_record_their_log_probs,
    prompts_are_padded_on_the_left,
    the_fingerprint_names_p,
    texts_have_no_special_tokens,
    switches_nest,
    the_base_is_frozen,
)
