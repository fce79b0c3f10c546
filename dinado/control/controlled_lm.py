"""The controlled model q proportional to p * R^alpha as a transformers model with ``generate()``.

All models share one cache object, with the layers of trained models after the base's, so that cache operations of
``generate`` (beam reordering, batch selection) apply to all of them. A policy decodes without the base.

Axes: N rows, L new positions, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from dinado.bases.architecture import check_length
from dinado.bases.causal import BaseLM
from dinado.bases.shared_prefix import positions_PS
from dinado.parameters.composed import Composed, Mixture
from dinado.parameters.parameterisation import Parameterisation


class ControlledConfig(PreTrainedConfig):
    """The sizes that ``generate()`` reads: every layer of the cache keeps all keys and values."""

    model_type = "dinado_controlled"

    vocab_size: int = 1
    hidden_size: int = 1
    num_hidden_layers: int = 1
    max_position_embeddings: int | None = None


class ControlledLM(PreTrainedModel, GenerationMixin):
    """A transformers model that decodes with p * R^alpha.

    Args:
        scores: the trained parameterisation, or several composed.
        alpha: control strength; 0 is the base, 1 the trained model. A policy with another alpha runs the base too.
    """

    config_class = ControlledConfig
    _supports_sdpa = True
    main_input_name = "input_ids"
    scores: Parameterisation | Composed

    def __init__(self, scores: Parameterisation | Composed, alpha: float = 1.0) -> None:
        base = scores.base
        # The base's own config would bring what the wrapper has not: windows, experts, embeddings of its own.
        super().__init__(
            ControlledConfig(
                vocab_size=base.vocab_size,
                hidden_size=base.hidden_size,
                num_hidden_layers=Mixture.of(scores, alpha).num_layers,
                max_position_embeddings=base.context,
            )
        )
        self.scores = scores
        self.alpha = alpha
        # The base's own generation defaults (truncation, temperature) must not leak in: q is defined without them.
        self.generation_config = GenerationConfig(
            eos_token_id=list(base.eos_ids),
            pad_token_id=base.pad_id,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
        )

    @property
    def base(self) -> BaseLM:
        """The frozen base."""
        return self.scores.base

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """Return next-token logits of q (log-probabilities up to a constant), ``[N, L, V]`` float32.

        Args:
            attention_mask: ``[N, past + L]``, 0 on left padding.
            position_ids: computed from the mask if not given.
            logits_to_keep: number of last positions to compute logits for; 0 for all.

        Raises:
            UserError: the text is longer than the base's context.
        """
        cache = past_key_values if past_key_values is not None else DynamicCache()
        length = input_ids.shape[1]
        if attention_mask is None:
            past = cache.get_seq_length() if past_key_values is not None else 0
            attention_mask = torch.ones((len(input_ids), past + length), dtype=torch.long, device=input_ids.device)
        if position_ids is None:
            position_ids = positions_PS(attention_mask)[:, -length:]
        if self.base.context is not None and attention_mask.shape[1] > self.base.context:
            check_length(self.base.context, int(position_ids.max()) + 1)
        where = {"attention_mask": attention_mask, "position_ids": position_ids}
        logits = Mixture.of(self.scores, self.alpha).logits(input_ids, cache, logits_to_keep, where)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache if use_cache else None)
