"""Next-token distributions of a causal model, one token after another from one cache.

Axes: P prompts, S prompt tokens, N rows, L new positions, J layers, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from dinado.bases.architecture import check_length, context_of, state_width, widened
from dinado.bases.roomy_cache import make_room
from dinado.bases.shared_prefix import positions_PS


class Decoder:
    """Next-token log-probabilities of a causal model, step by step, with one cache.

    Args:
        model: a transformers causal LM, a ControlledLM included.
        temperature: divides its logits; for a base, the temperature that is part of p.
        layers: layers whose hidden states are returned; 0 is the token embeddings.

    Attributes:
        states_NLJD: these states at the positions of the last call; set only if there are such layers.
    """

    states_NLJD: Tensor

    def __init__(self, model: Any, temperature: float = 1.0, layers: Sequence[int] = ()) -> None:
        self.model = model
        self.temperature = temperature
        self.layers = tuple(layers)
        self._context = context_of(model)
        accepts = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}

    def start(self, ids_PS: Tensor, mask_PS: Tensor, repeats: int | Tensor, room: int = 0) -> Tensor:
        """Encode each prompt once and repeat it for its rows; return log-probabilities ``[N, V]``.

        Args:
            repeats: number of rows of each prompt, one number for all or one each.
            room: number of tokens to come, if known; the cache is then allocated once.

        Raises:
            UserError: prompt and response are longer than the model's context.
        """
        check_length(self._context, int(mask_PS.sum(1).max()) + max(room - 1, 0))
        self._cache = DynamicCache()
        log_PV = self._forward(ids_PS, mask_PS, positions_PS(mask_PS))
        rows_N = torch.arange(len(ids_PS), device=ids_PS.device).repeat_interleave(repeats)
        self._cache.batch_select_indices(rows_N)
        if room:
            make_room(self._cache, room)
        self._mask_NL = mask_PS[rows_N]
        return log_PV[rows_N]

    def step(self, tokens_N: Tensor) -> Tensor:
        """Append one token to every row; return log-probabilities ``[N, V]``."""
        position_N1 = self._mask_NL.sum(1, keepdim=True)
        self._mask_NL = torch.cat([self._mask_NL, torch.ones_like(self._mask_NL[:, :1])], 1)
        return self._forward(tokens_N[:, None], self._mask_NL, position_N1)

    def keep(self, rows_M: Tensor) -> None:
        """Drop all rows but these."""
        self._cache.batch_select_indices(rows_M)
        self._mask_NL = self._mask_NL[rows_M]

    def _forward(self, ids_NL: Tensor, mask_NL: Tensor, position_NL: Tensor) -> Tensor:
        out = self.model(
            ids_NL,
            attention_mask=mask_NL,
            position_ids=position_NL,
            past_key_values=self._cache,
            use_cache=True,
            **self._last_only,
            **({"output_hidden_states": True} if self.layers else {}),
        )
        if self.layers:
            width = state_width(self.model)
            self.states_NLJD = torch.stack([widened(out.hidden_states[layer], width) for layer in self.layers], 2)
        logits_NV = out.logits[:, -1].float()
        return (logits_NV if self.temperature == 1.0 else logits_NV / self.temperature).log_softmax(1)
