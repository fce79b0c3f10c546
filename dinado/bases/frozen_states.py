"""Hidden states of the frozen base along a batch: recorded earlier, or computed now.

Axes: B rollouts, T response tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from dinado.bases.causal import BaseLM, LMStates
from dinado.bases.shared_prefix import align
from dinado.batch import RolloutBatch


def base_taps(base: BaseLM, batch: RolloutBatch, taps: tuple[float, ...]) -> tuple[tuple[Tensor, ...], LMStates]:
    """Return the states of the frozen base, adapters off, at some depths; see :func:`split_taps`."""
    return split_taps(frozen_states(base, batch, taps), len(taps), batch.prompt_of_row_B)


def frozen_states(base: BaseLM, batch: RolloutBatch, taps: Sequence[float]) -> LMStates:
    """Return the states of the frozen base, adapters off: recorded with the rollouts, or else computed now."""
    if batch.recorded is None:
        with base.adapters(on=False):
            return base.states(batch, taps)
    recorded, dtype = batch.recorded, base.head.weight_VD.dtype
    last, *places = (recorded.depths.index(layer) for layer in (base.num_layers, *map(base.layer, taps)))
    return LMStates(
        align(
            recorded.prompt_PSJD[:, :, last, : base.hidden_size].to(dtype),
            recorded.response_BRJD[:, :, last, : base.hidden_size].to(dtype),
            batch.prompt_of_row_B,
        ),
        batch.prompt_mask_PS,
        [recorded.prompt_PSJD[:, :, place].to(dtype) for place in places],
        [recorded.response_BRJD[:, :, place].to(dtype) for place in places],
    )


def split_taps(states: LMStates, count: int, prompt_of_row_B: Tensor) -> tuple[tuple[Tensor, ...], LMStates]:
    """Return the first ``count`` depths as ``[B, T, D]`` aligned with response tokens, and the states without them."""
    first = tuple(
        align(at_prompt, at_response, prompt_of_row_B)
        for at_prompt, at_response in zip(states.prompt_taps[:count], states.response_taps[:count], strict=True)
    )
    rest = dataclasses.replace(
        states, prompt_taps=states.prompt_taps[count:], response_taps=states.response_taps[count:]
    )
    return first, rest
