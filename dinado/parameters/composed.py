"""Decoding with p times powers of several R: one pass of the base, and one cache for everything.

A network gives log R_k, a policy log q_k = log p + log R_k, each up to a constant. So with strengths alpha_k

    log p + sum_k alpha_k log R_k  =  (1 - sum over policies of alpha_k) log p + sum_k alpha_k (log R_k or log q_k),

and log p is not needed where only policies take part and their strengths sum to 1. Where oracles C_k are independent
given every prefix, prod_k R_k is the R of their product, so that runs trained apart decode like one trained on
prod_k C_k (the product of experts; Hinton, 2002). Axes: N rows, L new positions, K of them kept, V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import Cache

from dinado.bases.architecture import widened
from dinado.bases.causal import BaseLM
from dinado.bases.joint_cache import layers_of
from dinado.errors import UserError
from dinado.parameters.parameterisation import Parameterisation, Share

ROUNDING = 1e-9
"""Strengths of policies whose sum is nearer to 1 than this leave nothing of log p."""


class Composed(nn.Module):
    """Several trained runs of one base, which decode together.

    Args:
        parts: the runs; two policies with adapters have a base each (:func:`dinado.bases.twins.twin`).
        alphas: the strength of each; that of a :class:`ControlledLM` multiplies all of them.

    Raises:
        UserError: the parts were trained on different bases, temperatures or prompt formats.
        ValueError: there is no part, or another number of strengths.
    """

    def __init__(self, parts: Sequence[Parameterisation], alphas: Sequence[float]) -> None:
        super().__init__()
        if not parts or len(parts) != len(alphas):
            raise ValueError(f"{len(parts)} runs and {len(alphas)} strengths; give a strength for each run")
        first = parts[0].base
        for number, part in enumerate(parts[1:], 2):
            if part.base.fingerprint != first.fingerprint:
                raise UserError(
                    f"run {number} ({part.base.name}) and run 1 ({first.name}) differ in base, temperature or prompt "
                    "format; compose runs of one base"
                )
        self.parts = nn.ModuleList(parts)
        self.alphas = tuple(alphas)

    @property
    def base(self) -> BaseLM:
        """The frozen base, with adapters off that of every part."""
        return self.shares(1.0)[0].scores.base

    def shares(self, alpha: float) -> list[Share]:
        """Return the parts, each with its strength times ``alpha``."""
        parts: Iterable[Any] = self.parts
        return [Share(part, alpha * own) for part, own in zip(parts, self.alphas, strict=True)]


class Mixture(NamedTuple):
    """What takes part in decoding.

    Attributes:
        base: the frozen base.
        shares: the factors whose strength is not 0.
    """

    base: BaseLM
    shares: list[Share]

    @classmethod
    def of(cls, scores: Parameterisation | Composed, alpha: float) -> Mixture:
        """Return the factors at a control strength."""
        return cls(scores.base, [share for share in scores.shares(alpha) if share.alpha])

    @property
    def of_base(self) -> float:
        """The coefficient of log p, beside policies that contain it."""
        left = 1.0 - math.fsum(alpha for scores, alpha in self.shares if scores.is_policy)
        return left if abs(left) > ROUNDING else 0.0

    @property
    def runs_base(self) -> bool:
        """Whether the base runs, for log p or for networks that read its states."""
        return self.of_base != 0.0 or any(scores.depths for scores, _ in self.shares)

    @property
    def num_layers(self) -> int:
        """The number of cache layers of everything."""
        return self.runs_base * self.base.num_layers + sum(scores.own_layers for scores, _ in self.shares)

    def logits(self, ids_NL: Tensor, cache: Cache, keep: int, where: dict[str, Tensor]) -> Tensor:
        """Compute next-token logits after new tokens, ``[N, keep, V]`` float32.

        Args:
            cache: one cache for everything; the base's layers come first.
            keep: positions to form logits for, the last ones; 0 for all.
            where: attention mask and position ids.
        """
        total_NKV: Tensor | float = 0.0
        first = self.base.num_layers if self.runs_base else 0
        states_NLD = self._base_states(ids_NL, layers_of(cache, 0, first), where) if first else {}
        if self.of_base:
            total_NKV = self.of_base * self.base.head.logits(states_NLD[first][:, -keep:])
        for scores, alpha in self.shares:
            taps = [widened(states_NLD[self.base.layer(depth)], self.base.state_width) for depth in scores.depths]
            view = layers_of(cache, first, first + scores.own_layers)
            total_NKV = total_NKV + alpha * scores.own_logits(ids_NL, taps, view, keep, where)
            first += scores.own_layers
        assert isinstance(total_NKV, Tensor)  # something takes part: the base, where nothing else does
        return total_NKV

    def _base_states(self, ids_NL: Tensor, cache: Cache, where: dict[str, Tensor]) -> dict[int, Tensor]:
        """Run the base, adapters off, and return its last states and those that networks read, by layer."""
        last = self.base.num_layers
        wanted = {self.base.layer(depth) for scores, _ in self.shares for depth in scores.depths} - {last}
        with self.base.adapters(on=False):
            out = self.base.model.base_model(
                ids_NL, past_key_values=cache, use_cache=True, output_hidden_states=bool(wanted), **where
            )
        return {last: out.last_hidden_state} | {layer: out.hidden_states[layer] for layer in wanted}
