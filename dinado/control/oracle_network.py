"""The oracle network: a small causal transformer that reads the frozen base's hidden states.

It sees the prompt as well as the response, so it can tell what the prompt asks for and what is still missing.
The body consists of transformers' Llama blocks on projected features.
Axes: N rows, L positions, D base width, E network width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, LlamaConfig, LlamaModel

from dinado.bases.causal import LMStates
from dinado.bases.shared_prefix import align, run_shared
from dinado.batch import RolloutBatch
from dinado.control.pointer import Pointer
from dinado.objectives.logspace import at_least_float
from dinado.objectives.reduction import Head


class NetworkStates(NamedTuple):
    """Outputs of the network's transformer at some positions.

    Attributes:
        state_NLE: the last hidden states.
        pointed_NLD: the pointer's addition to the tied head's input; None without a pointer.
    """

    state_NLE: Tensor
    pointed_NLD: Tensor | None


class NetworkRun(NamedTuple):
    """Outputs of the network's transformer on the prompts and responses of a batch.

    Attributes:
        at_prompt, at_response: states ``[P, S, ...]`` and ``[B, R, ...]``, then a pointer's additions if there is one.
        prompt_ids_PS, prompt_mask_PS: the tokens at the positions of ``at_prompt``, and where they are real.
    """

    at_prompt: tuple[Tensor, ...]
    at_response: tuple[Tensor, ...]
    prompt_ids_PS: Tensor
    prompt_mask_PS: Tensor

    def along_responses(self, batch: RolloutBatch) -> NetworkStates:
        """Return the states before each response token, ``[B, T, ...]``."""
        pairs = zip(self.at_prompt, self.at_response, strict=True)
        return _states(align(*both, batch.prompt_of_row_B) for both in pairs)

    def before_last(self) -> NetworkStates:
        """Return the states before each prompt's last token, ``[P, 1, ...]``; undefined for a prompt of one token."""
        # Padding may lie between a common prefix of all prompts and a prompt's own tokens.
        place_PS = self.prompt_mask_PS.cumsum(1) * self.prompt_mask_PS
        place_P = (place_PS == self.prompt_mask_PS.sum(1, keepdim=True) - 1).int().argmax(1)
        rows_P = torch.arange(len(place_P), device=place_P.device)
        return _states(out[rows_P, place_P][:, None] for out in self.at_prompt)


def _states(outputs: Iterable[Tensor]) -> NetworkStates:
    state_NLE, *pointed = outputs
    return NetworkStates(state_NLE, pointed[0] if pointed else None)


class OracleNetwork(nn.Module):
    """A network that predicts score logits over the vocabulary from base states; they are 0 when training starts.

    Args:
        base_width: width of the base's states; the output embeddings may have another, D.
        vocab_size: V.
        num_taps: the number of base depths that are read.
        width, layers, heads: sizes of the transformer.
        head: ``free`` trains a V x E matrix; ``tied`` trains an E -> D projection in front of the base's own output
            embeddings, so that learning about one token carries over to similar tokens.
        pointer: add a :class:`Pointer` to the tied head.
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
        pointer: bool = False,
        base_weight_VD: Tensor | None = None,
    ) -> None:
        super().__init__()
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
        # The body reads features; an unused embedding would be a parameter without a gradient.
        self.body.embed_tokens = nn.Identity()
        self.tied = head == "tied"
        self.pointer: Pointer | None = None
        if self.tied:
            if base_weight_VD is None:
                raise ValueError("the tied head needs the base's output embeddings")
            self.out = nn.Linear(width, base_weight_VD.shape[1], bias=False)
            # Dividing by the mean norm of the embedding rows keeps the scores of order 1.
            self.tied_scale = float(1.0 / base_weight_VD.detach().float().norm(dim=1).mean())
            self.pointer = Pointer(width, base_weight_VD) if pointer else None
        elif pointer:
            raise ValueError("a pointer needs the tied head")
        else:
            self.out = nn.Linear(width, vocab_size, bias=False)
        nn.init.zeros_(self.out.weight)

    def head(self, base_head: Head) -> Head:
        """Return the vocabulary head that is applied to :meth:`score_hidden`."""
        return Head(base_head.weight_VD, None, self.tied_scale) if self.tied else Head(self.out.weight)

    @property
    def cache_layers(self) -> int:
        """The number of cache layers that the network uses."""
        return self.body.config.num_hidden_layers + (self.pointer is not None)

    def zero_start(self) -> list[Tensor]:
        """Return the parameters that are 0 when training starts; unless they are trained, the scores stay 0."""
        return [self.out.weight, *([] if self.pointer is None else self.pointer.query.parameters())]

    def score_hidden(self, states: NetworkStates) -> Tensor:
        """Return the input of the vocabulary head: ``[N, L, D]`` when tied, the state itself otherwise."""
        if not self.tied:
            return states.state_NLE
        hidden_NLD = self.out(states.state_NLE)
        return hidden_NLD if states.pointed_NLD is None else hidden_NLD + states.pointed_NLD / self.tied_scale

    def run_batch(self, states: LMStates, batch: RolloutBatch, base_head: Head) -> NetworkRun:
        """Run the transformer on a batch, every prompt once for all its responses."""
        # In the states, padding may follow a common prefix of all prompts; the token ids are moved accordingly.
        prompt_ids_PS = torch.zeros_like(batch.prompt_ids_PS)
        prompt_ids_PS[states.prompt_mask_PS.bool()] = batch.prompt_ids_PS[batch.prompt_mask_PS.bool()]
        prompt = self.features(states.prompt_taps, prompt_ids_PS, base_head)
        response = self.features(states.response_taps, batch.response_BT[:, :-1], base_head)
        prompt_of_row_B, mask_BR = batch.prompt_of_row_B, batch.response_mask_BT[:, :-1]
        ran = run_shared(self.run, prompt, states.prompt_mask_PS, prompt_of_row_B, response, mask_BR)
        return NetworkRun(ran.at_prompt, ran.at_response, prompt_ids_PS, ran.prompt_mask_PS)

    def features(self, taps: Sequence[Tensor], tokens_NL: Tensor, base_head: Head) -> Tensor:
        """Return the input of :meth:`run`: the projected depths' sum, ``[N, L, E]``, then the pointer's targets."""
        summed = torch.stack([read(at_least_float(tap)) for read, tap in zip(self.read, taps, strict=True)]).sum(0)
        if self.pointer is None:
            return summed
        return torch.cat([summed, self.pointer.targets(base_head.weight_VD, tokens_NL).to(summed.dtype)], -1)

    def run(
        self, features_NLF: Tensor, *, attention_mask: Tensor, past_key_values: Cache, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        """Run the transformer on features; return its states and, if there is a pointer, the pointer's addition."""
        features_NLE, target_NLD = features_NLF[..., : self.width], features_NLF[..., self.width :]
        where = {"attention_mask": attention_mask, "past_key_values": past_key_values, **kwargs}
        state_NLE = self.body(inputs_embeds=features_NLE, use_cache=True, **where).last_hidden_state
        if self.pointer is None:
            return (state_NLE,)
        layer = self.body.config.num_hidden_layers
        return state_NLE, self.pointer(state_NLE, target_NLD, attention_mask, past_key_values, layer)
