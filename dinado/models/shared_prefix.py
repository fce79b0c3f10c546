"""Run a causal transformer on several responses to one prompt and read the prompt only once.

Axes: P prompts, S prompt tokens (left-padded), B responses, T response tokens (right-padded), D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache

Body = Callable[..., tuple[Tensor, ...]]


def positions_PS(mask_PS: Tensor) -> Tensor:
    """Position ids that count real tokens only, so that left padding changes nothing."""
    return (mask_PS.cumsum(1) - 1).clamp_min(0)


def run_shared(
    body: Body,
    prompt: Tensor,
    prompt_mask_PS: Tensor,
    prompt_of_row_B: Tensor,
    response: Tensor,
    response_mask_BR: Tensor,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Outputs of ``body`` at every prompt position and at every given response position.

    Args:
        body: ``body(inputs, attention_mask=, position_ids=, past_key_values=)`` -> tensors ``[N, L, ...]``; it
            appends its keys and values to the cache. Gradients flow through the cached prompt.
        prompt: token ids ``[P, S]`` or features ``[P, S, F]``.
        response: what follows the prompt, ``[B, R]`` or ``[B, R, F]``; R may be 0.

    Returns:
        Two tuples with one tensor per output of ``body``: ``[P, S, ...]`` and ``[B, R, ...]``.
    """
    cache = DynamicCache()
    at_prompt = body(
        prompt, attention_mask=prompt_mask_PS, position_ids=positions_PS(prompt_mask_PS), past_key_values=cache
    )
    if response.shape[1] == 0:
        return at_prompt, tuple(out.new_zeros((len(response), 0, *out.shape[2:])) for out in at_prompt)
    cache.batch_select_indices(prompt_of_row_B)
    mask_BS = prompt_mask_PS[prompt_of_row_B]
    start_B1 = mask_BS.sum(1, keepdim=True)
    at_response = body(
        response,
        attention_mask=torch.cat([mask_BS, response_mask_BR.to(mask_BS.dtype)], 1),
        position_ids=start_B1 + torch.arange(response.shape[1], device=response.device),
        past_key_values=cache,
    )
    return at_prompt, at_response


def align(at_prompt_PSD: Tensor, at_response_BRD: Tensor, prompt_of_row_B: Tensor) -> Tensor:
    """States ``[B, R + 1, D]`` whose row t predicts response token t: the prompt's last state, then the response's."""
    return torch.cat([at_prompt_PSD[prompt_of_row_B, -1:], at_response_BRD], 1)
