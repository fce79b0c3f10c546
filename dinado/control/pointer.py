"""A pointer, which raises or lowers the scores of the tokens of the prompt and the text so far, and of similar tokens.

Oracles often ask for something that the prompt names. An output matrix has to learn that for every token separately; a
pointer learns it once (Vinyals et al., Pointer Networks, 2015). Its coefficients are not normalised and may be
negative, so it can point at nothing, and away from tokens that have been used.
Axes: N rows, L new positions, M all positions, E network width, K key width, D base width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache


class Pointer(nn.Module):
    """Unnormalised attention ``sum_j (query_i . key_j / sqrt(K)) u_j`` over positions j <= i; 0 when training starts.

    ``u_j`` is the centred output embedding of token j divided by its squared norm, so that a coefficient of 1 adds
    about 1 to the score of that token itself.

    Args:
        width: E of the states that queries and keys are computed from.
        weight_VD: the base's output embeddings.
        key_width: K.
    """

    mean_D: Tensor

    def __init__(self, width: int, weight_VD: Tensor, key_width: int = 64) -> None:
        super().__init__()
        self.query = nn.Linear(width, key_width)
        self.key = nn.Linear(width, key_width)
        self.scale = key_width**-0.5
        self.register_buffer("mean_D", weight_VD.detach().float().mean(0), persistent=False)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)

    def targets(self, weight_VD: Tensor, tokens_NL: Tensor) -> Tensor:
        """Return the targets ``u``, ``[N, L, D]``."""
        centred = weight_VD.detach()[tokens_NL].float() - self.mean_D
        return centred / centred.square().sum(-1, keepdim=True).clamp_min(1e-6)

    def forward(self, state_NLE: Tensor, target_NLD: Tensor, mask_NM: Tensor, cache: Cache, layer: int) -> Tensor:
        """Return the addition to the vocabulary head's input, ``[N, L, D]``.

        Args:
            mask_NM: 1 where a position is real, those in the cache included.
            cache, layer: the cache, and its layer for keys and targets, to which those of new positions are appended.
        """
        query_NLK = self.query(state_NLE) * self.scale
        keys, targets = cache.update(self.key(state_NLE)[:, None], target_NLD[:, None].to(state_NLE.dtype), layer)
        new, total = state_NLE.shape[1], keys.shape[2]
        coefficient_NLM = query_NLK @ keys[:, 0].transpose(1, 2)
        position = torch.arange(total, device=mask_NM.device)
        causal_LM = position <= position[total - new :, None]
        allowed = causal_LM & (mask_NM[:, None] > 0)
        return torch.where(allowed, coefficient_NLM, 0.0) @ targets[:, 0]
