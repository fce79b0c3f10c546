"""The controlled model q proportional to p * R^alpha as a transformers model with ``generate()``.

Base and oracle network share one cache object: the base's layers come first, the network's behind them, so whatever
``generate`` does to the cache (beam reordering, batch selection) it does to both. A policy decodes alone.

Axes: N rows, L new positions, V vocabulary, D width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from dinado.models.base_lm import BaseLM
from dinado.models.oracle_network import NetworkStates
from dinado.models.scores import NetworkScores, PolicyScores, adapters
from dinado.models.shared_prefix import positions_PS
from dinado.objectives.reduction import Head, link_scores


class ControlledLM(PreTrainedModel, GenerationMixin):
    """Decode with p * R^alpha.

    Args:
        scores: what was trained.
        alpha: control strength; 0 is the base, 1 the trained model. Policies with alpha other than 1 run the base too.
    """

    _supports_sdpa = True
    main_input_name = "input_ids"
    scores: NetworkScores | PolicyScores

    def __init__(self, scores: NetworkScores | PolicyScores, alpha: float = 1.0) -> None:
        base = scores.base
        config = copy.deepcopy(base.model.config)
        self_layers = base.num_layers
        extra = scores.network.cache_layers if isinstance(scores, NetworkScores) else self_layers if alpha != 1.0 else 0
        config.num_hidden_layers = self_layers + extra
        if getattr(config, "layer_types", None):
            config.layer_types = [*config.layer_types, *["full_attention"] * extra]
        super().__init__(config)
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
        """Next-token logits of q (log-probabilities up to a constant), ``[N, L, V]`` float32.

        Args:
            attention_mask: ``[N, past + L]``, 0 on left padding.
            position_ids: taken from the mask when not given.
            logits_to_keep: form logits for this many last positions only; 0 for all.
        """
        cache = past_key_values if past_key_values is not None else DynamicCache()
        length = input_ids.shape[1]
        if attention_mask is None:
            past = cache.get_seq_length() if past_key_values is not None else 0
            attention_mask = torch.ones((len(input_ids), past + length), dtype=torch.long, device=input_ids.device)
        if position_ids is None:
            position_ids = positions_PS(attention_mask)[:, -length:]
        where = {"attention_mask": attention_mask, "position_ids": position_ids}
        if isinstance(self.scores, NetworkScores):
            logits = self._network(self.scores, input_ids, cache, logits_to_keep, where)
        else:
            logits = self._policy(self.scores, input_ids, cache, logits_to_keep, where)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache if use_cache else None)

    def _network(
        self, scores: NetworkScores, ids_NL: Tensor, cache: Cache, keep: int, where: dict[str, Tensor]
    ) -> Tensor:
        layers, network = self.base.num_layers, scores.network
        indices = [round(depth * layers) for depth in scores.taps]
        out = self.base.model.base_model(
            ids_NL,
            past_key_values=_view(cache, 0, layers),
            use_cache=True,
            output_hidden_states=any(i < layers for i in indices),
            **where,
        )
        last = out.last_hidden_state
        taps = [last if i == layers else out.hidden_states[i] for i in indices]
        view = _view(cache, layers, layers + network.cache_layers)
        ran = network.run(network.features(taps, ids_NL, self.base.head), past_key_values=view, **where)
        last_states = NetworkStates(*(out[:, -keep:] for out in ran), *(() if len(ran) > 1 else (None,)))
        u = network.head(self.base.head).logits(network.score_hidden(last_states))
        return self.base.head.logits(last[:, -keep:]) + self.alpha * link_scores(scores.link, u)

    def _policy(
        self, scores: PolicyScores, ids_NL: Tensor, cache: Cache, keep: int, where: dict[str, Tensor]
    ) -> Tensor:
        layers = self.base.num_layers

        def logits(lm: BaseLM, head: Head, start: int) -> Tensor:
            view = _view(cache, start, start + layers)
            out = lm.model.base_model(ids_NL, past_key_values=view, use_cache=True, **where)
            return head.logits(out.last_hidden_state[:, -keep:])

        of_policy = logits(scores.policy, scores.policy.adapted_head, 0)
        if self.alpha == 1.0:
            return of_policy
        with adapters(self.base, on=False):
            of_base = logits(self.base, self.base.head, layers)
        return of_base + self.alpha * (of_policy - of_base)


def _view(cache: Cache, start: int, stop: int) -> DynamicCache:
    """Some layers of a cache as a cache of their own; the layer objects are shared, not copied."""
    while len(cache.layers) < stop:
        cache.layers.append(DynamicLayer())
    view = DynamicCache()
    view.layers = cache.layers[start:stop]
    return view
