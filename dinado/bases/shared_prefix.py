"""Forward passes over several responses to one prompt that compute the shared tokens only once.

Axes: P prompts, S prompt tokens (left-padded), B responses, T response tokens (right-padded), D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

Body = Callable[..., tuple[Tensor, ...]]


def positions_PS(mask_PS: Tensor) -> Tensor:
    """Return position ids that count real tokens only, so that left padding has no effect."""
    return (mask_PS.cumsum(1) - 1).clamp_min(0)


class SharedRun(NamedTuple):
    """Outputs of a body on prompts and responses.

    Attributes:
        at_prompt: one tensor ``[P, S, ...]`` for each output, valid where ``prompt_mask_PS`` is 1.
        at_response: one tensor ``[B, R, ...]`` for each output.
        prompt_mask_PS: 1 where a position of ``at_prompt`` is real; padding may follow a common prefix.
    """

    at_prompt: tuple[Tensor, ...]
    at_response: tuple[Tensor, ...]
    prompt_mask_PS: Tensor


def run_shared(
    body: Body,
    prompt: Tensor,
    prompt_mask_PS: Tensor,
    prompt_of_row_B: Tensor,
    response: Tensor,
    response_mask_BR: Tensor,
    window: int | None = None,
) -> SharedRun:
    """Return the outputs of ``body`` at every prompt position and at every given response position.

    The common prefix of all prompts (a chat template's system message, an instruction) is computed once for all, and
    each prompt once for all its responses. Gradients flow through the cache.

    Args:
        body: ``body(inputs, attention_mask=, position_ids=, past_key_values=)`` -> tensors ``[N, L, ...]``; it
            appends its keys and values to the cache.
        prompt: token ids ``[P, S]`` or features ``[P, S, F]``.
        response: token ids ``[B, R]`` or features ``[B, R, F]`` that follow the prompt; R may be 0.
        window: number of slots that a token of the body attends to in some layer; None for all. Sharing the common
            prefix puts padding between it and a shorter prompt's own tokens, and windows count padding. The prefix is
            therefore shared only where no text exceeds the window.
    """
    cache = DynamicCache()
    seen = window is None or prompt.shape[1] + response.shape[1] <= window
    common = common_prefix(prompt, prompt_mask_PS) if prompt.ndim == 2 and seen else 0
    first: tuple[Tensor, ...] = ()
    if common:
        longest = int(prompt_mask_PS.sum(1).argmax())
        start = int((prompt_mask_PS[longest] == 0).sum())
        beginning_1C = prompt[longest : longest + 1, start : start + common]
        ones_1C = torch.ones_like(beginning_1C)
        first = body(beginning_1C, attention_mask=ones_1C, position_ids=positions_PS(ones_1C), past_key_values=cache)
        cache.batch_select_indices(torch.zeros(len(prompt), dtype=torch.long, device=prompt.device))
        # Rows are left-padded, so cutting the same leading columns keeps the last tokens of each in place.
        columns = torch.arange(prompt.shape[1], device=prompt.device)
        own_PS = (columns >= (prompt_mask_PS == 0).sum(1, keepdim=True) + common).long()[:, common + start :]
        prompt = prompt[:, common + start :]
        prompt_mask_PS = torch.cat([ones_1C.expand(len(prompt), -1).to(own_PS.dtype), own_PS], 1)
    at_prompt = body(
        prompt,
        attention_mask=prompt_mask_PS,
        position_ids=positions_PS(prompt_mask_PS)[:, common:],
        past_key_values=cache,
    )
    if common:
        at_prompt = tuple(
            torch.cat([a.expand(len(b), *a.shape[1:]), b], 1) for a, b in zip(first, at_prompt, strict=True)
        )
    if response.shape[1] == 0:
        nothing = tuple(out.new_zeros((len(response), 0, *out.shape[2:])) for out in at_prompt)
        return SharedRun(at_prompt, nothing, prompt_mask_PS)
    order_B, chunks = similar_lengths(response_mask_BR)
    parts = []
    for rows_b, width in chunks:
        mask_bS = prompt_mask_PS[prompt_of_row_B[rows_b]]
        out = body(
            response[rows_b, :width],
            attention_mask=torch.cat([mask_bS, response_mask_BR[rows_b, :width].to(mask_bS.dtype)], 1),
            position_ids=mask_bS.sum(1, keepdim=True) + torch.arange(width, device=response.device),
            past_key_values=selected(cache, prompt_of_row_B[rows_b]),
        )
        parts.append([F.pad(t, (0, 0) * (t.ndim - 2) + (0, response.shape[1] - width)) for t in out])
    back_B = order_B.argsort()
    at_response = tuple(torch.cat(column)[back_B] for column in zip(*parts, strict=True))
    return SharedRun(at_prompt, at_response, prompt_mask_PS)


def similar_lengths(mask_BR: Tensor) -> tuple[Tensor, list[tuple[Tensor, int]]]:
    """Sort rows by length and cut the order in two where that saves most padding, or not at all.

    Returns:
        The order, and for each piece its rows and the width of the longest of them.
    """
    length_B = (mask_BR * torch.arange(1, mask_BR.shape[1] + 1, device=mask_BR.device)).amax(1)
    order_B = length_B.argsort(stable=True)
    sorted_B = length_B[order_B].clamp_min(1)
    rows = torch.arange(1, len(sorted_B), device=sorted_B.device)
    cost = rows * sorted_B[:-1] + (len(sorted_B) - rows) * sorted_B[-1]
    widest = int(sorted_B[-1])
    # A second pass has an overhead; it has to save a tenth of the work.
    if not len(cost) or int(cost.min()) > 0.9 * len(sorted_B) * widest:
        return order_B, [(order_B, widest)]
    cut = int(cost.argmin()) + 1
    return order_B, [(order_B[:cut], int(sorted_B[cut - 1])), (order_B[cut:], widest)]


def selected(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """Return a new cache with some rows of another, which is left unchanged; gradients flow."""
    copy = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copy.update(layer.keys[rows], layer.values[rows], index)
    return copy


def common_prefix(ids_PS: Tensor, mask_PS: Tensor) -> int:
    """Count the tokens that all left-padded prompts begin with, leaving each at least one token; 0 for one prompt."""
    if len(ids_PS) == 1:
        return 0
    lengths_P = mask_PS.sum(1)
    most = int(lengths_P.min()) - 1
    starts_P = ids_PS.shape[1] - lengths_P
    columns_PC = starts_P[:, None] + torch.arange(most, device=ids_PS.device)
    heads_PC = ids_PS.gather(1, columns_PC)
    same_C = (heads_PC == heads_PC[:1]).all(0)
    return int(same_C.long().cumprod(0).sum())


def align(at_prompt_PSD: Tensor, at_response_BRD: Tensor, prompt_of_row_B: Tensor) -> Tensor:
    """Return states ``[B, R + 1, D]`` whose row t predicts token t: the prompt's last state, then the response's."""
    return torch.cat([at_prompt_PSD[prompt_of_row_B, -1:], at_response_BRD], 1)
