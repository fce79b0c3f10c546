"""The oracle network: a small causal transformer that reads the frozen base's hidden states.

It sees the prompt as well as the response, so it can tell what the prompt asks for and what is still missing.
Body: transformers' Llama blocks on projected features. Axes: N rows, L positions, D base width, E network width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from dinado.models.base_lm import LMStates
from dinado.models.shared_prefix import align, run_shared
from dinado.objectives.reduction import Head


class OracleNetwork(nn.Module):
    """Score logits over the vocabulary from base states, zero when training starts.

    Args:
        base_width: D.
        vocab_size: V.
        num_taps: how many depths of the base are read.
        width, layers, heads: of the transformer.
        head: ``free`` trains a V x E matrix; ``tied`` trains an E -> D projection in front of the base's own output
            embeddings, so that what is learned about one token carries over to its neighbours.
        base_weight_VD: the base's output embeddings, needed by the tied head.
    """

    def __init__(
        self,
        base_width: int,
        vocab_size: int,
        num_taps: int,
        *,
        width: int,
        layers: int,
        heads: int,
        head: str = "free",
        base_weight_VD: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.width = width
        self.read = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(base_width), nn.Linear(base_width, width)) for _ in range(num_taps)
        )
        self.body = LlamaModel(
            LlamaConfig(
                vocab_size=1,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        # The body is fed features; an embedding nobody uses would be a parameter without a gradient.
        self.body.embed_tokens = nn.Identity()
        self.tied = head == "tied"
        if self.tied:
            if base_weight_VD is None:
                raise ValueError("the tied head needs the base's output embeddings")
            self.out = nn.Linear(width, base_width, bias=False)
            # Rows of the embedding matrix have some typical length; dividing by it keeps the scores' scale of order 1.
            self.tied_scale = float(1.0 / base_weight_VD.detach().float().norm(dim=1).mean())
        else:
            self.out = nn.Linear(width, vocab_size, bias=False)
        nn.init.zeros_(self.out.weight)

    def head(self, base_head: Head) -> Head:
        """The vocabulary head that belongs to :meth:`score_hidden`."""
        return Head(base_head.weight_VD, None, self.tied_scale) if self.tied else Head(self.out.weight)

    def score_hidden(self, state_NLE: Tensor) -> Tensor:
        """What the vocabulary head multiplies: ``[N, L, D]`` when tied, the state itself otherwise."""
        return self.out(state_NLE) if self.tied else state_NLE

    def forward_batch(self, states: LMStates, prompt_of_row_B: Tensor, mask_BT: Tensor) -> Tensor:
        """Network states ``[B, T, E]`` aligned with response tokens."""
        prompt, response = self.features(states.prompt_taps), self.features(states.response_taps)
        ran = run_shared(self.run, prompt, states.prompt_mask_PS, prompt_of_row_B, response, mask_BT[:, :-1])
        return align(ran.at_prompt[0], ran.at_response[0], prompt_of_row_B)

    def features(self, taps: Sequence[Tensor]) -> Tensor:
        """Sum of the projected depths, ``[N, L, E]``."""
        return torch.stack([read(tap.float()) for read, tap in zip(self.read, taps, strict=True)]).sum(0)

    def run(self, features_NLE: Tensor, **kwargs: Any) -> tuple[Tensor]:
        """The transformer on features; keyword arguments are those of a transformers model."""
        return (self.body(inputs_embeds=features_NLE, use_cache=True, **kwargs).last_hidden_state,)


class NormHead(nn.Module):
    """Logit of the step-wise norm from states: Linear, ReLU, Linear without bias; 0 when training starts.

    Lu et al., DiNADO (2024): log beta = log sigmoid(MLP(h)). It may read several
    depths: the last layer is about the next token, and what has been written so far may show better below it.

    Args:
        width: D of each state.
        num_taps: how many states it reads.
    """

    def __init__(self, width: int, num_taps: int = 1) -> None:
        super().__init__()
        self.read = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_taps))
        hidden = min(4 * width, 512)
        self.hidden = nn.Sequential(nn.Linear(num_taps * width, hidden), nn.ReLU())
        self.out = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """``[B, T]`` from ``num_taps`` states ``[B, T, D]``."""
        normed = [read(state.float()) for read, state in zip(self.read, states, strict=True)]
        return self.out(self.hidden(torch.cat(normed, -1)))[..., 0]
