"""The likeliest responses of a base by beam search, in the form of samples.

Axes: P prompts, S prompt tokens, K responses a prompt, L all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper

from dinado.bases.architecture import check_length
from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.rollouts.sampler import Samples


@torch.no_grad()
def beam_search(base: BaseLM, ids_PS: Tensor, mask_PS: Tensor, num_beams: int, max_new_tokens: int) -> Samples:
    """Return the K hypotheses of a beam search of width K, likeliest first; nothing is drawn, so ``log_s`` is 0.

    Hypotheses are compared by their log-probability under p, without a length penalty. Where the vocabulary is too
    small for K different hypotheses, some occur twice.
    """
    check_length(base.context, int(mask_PS.sum(1).max()) + max_new_tokens - 1)
    processors = LogitsProcessorList([TemperatureLogitsWarper(base.temperature)] if base.temperature != 1.0 else [])
    with _without_defaults(base.model):
        out_NL = base.model.generate(
            ids_PS,
            attention_mask=mask_PS,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            do_sample=False,
            length_penalty=0.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(base.eos_ids),
            pad_token_id=base.pad_id,
            logits_processor=processors,
            renormalize_logits=True,
        )
    tokens = [_until_end(row, base.eos_ids) for row in out_NL[:, ids_PS.shape[1] :].tolist()]
    prompt_of = [prompt for prompt in range(len(ids_PS)) for _ in range(num_beams)]
    log_p = base.log_probs(RolloutBatch.unjudged(ids_PS, mask_PS, prompt_of, tokens)).tolist()
    return Samples(
        tokens=tokens,
        log_p=[row[: len(response)] for row, response in zip(log_p, tokens, strict=True)],
        log_s=[[0.0] * len(response) for response in tokens],
        finished=[response[-1] in base.eos_ids for response in tokens],
        prompt_of=prompt_of,
    )


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Hide the model's generation defaults (repetition penalty, forced tokens, ...) in the block: p has none."""
    defaults, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = defaults


def _until_end(tokens: list[int], eos_ids: tuple[int, ...]) -> list[int]:
    """Return the tokens up to and including the first end-of-sequence token; the rest is padding."""
    ends = [index for index, token in enumerate(tokens) if token in eos_ids]
    return tokens[: ends[0] + 1] if ends else tokens
