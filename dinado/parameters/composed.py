"""Decoding with p times powers of several R: one pass of the base, and one cache for everything.

A network gives log R_k, a policy log q_k = log p + log R_k, each up to a constant. So with strengths alpha_k

    log p + sum_k alpha_k log R_k  =  (1 - sum over policies of alpha_k) log p + sum_k alpha_k (log R_k or log q_k),

and log p is not needed where only policies take part and their strengths sum to 1. Where oracles C_k are independent
given every prefix, prod_k R_k is the R of their product, so that runs trained apart decode like one trained on
prod_k C_k (the product of experts; Hinton, 2002). Axes: N rows, L new positions, K of them kept, V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
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

    @property
    def switched_on(self) -> bool:
        """Whether the trained weights of all parts are on."""
        return all(share.scores.switched_on for share in self.shares(1.0))

    @contextmanager
    def on(self) -> Iterator[None]:
        """Switch the trained weights of all parts on inside a block in which they are off."""
        with ExitStack() as stack:
            for share in self.shares(1.0):
                stack.enter_context(share.scores.on())
            yield

    def shares(self, alpha: float) -> list[Share]:
        """Return the parts, each with its strength times ``alpha``."""
        parts: Iterable[Any] = self.parts
        return [Share(part, alpha * own) for part, own in zip(parts, self.alphas, strict=True)]


class Mixture(NamedTuple):
    """What takes part in decoding.

    Attributes:
        base: the frozen base.
        shares: the factors whose strength is not 0.
        asks_base: whether log p is wanted by itself, so that the base runs in any case.
    """

    base: BaseLM
    shares: list[Share]
    asks_base: bool = False

    @classmethod
    def of(cls, scores: Parameterisation | Composed, alpha: float, *, asks_base: bool = False) -> Mixture:
        """Return the factors at a control strength."""
        return cls(scores.base, [share for share in scores.shares(alpha) if share.alpha], asks_base)

    @property
    def of_base(self) -> float:
        """The coefficient of log p, beside policies that contain it."""
        left = 1.0 - math.fsum(alpha for scores, alpha in self.shares if scores.is_policy)
        return left if abs(left) > ROUNDING else 0.0

    @property
    def runs_base(self) -> bool:
        """Whether the base runs, for log p or for networks that read its states."""
        return self.asks_base or self.of_base != 0.0 or any(scores.depths for scores, _ in self.shares)

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
        states_NLD, own = self._run(ids_NL, cache, keep, where)
        if self.of_base:
            total_NKV = self.of_base * self._log_p(states_NLD, keep)
        for (_, alpha), own_NKV in zip(self.shares, own, strict=True):
            total_NKV = total_NKV + alpha * own_NKV
        assert isinstance(total_NKV, Tensor)  # something takes part: the base, where nothing else does
        return total_NKV

    def log_p_and_r(self, ids_NL: Tensor, cache: Cache, keep: int, where: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute log p and the sum of alpha log R, each up to a constant; for the arguments see :meth:`logits`."""
        states_NLD, own = self._run(ids_NL, cache, keep, where)
        log_p_NKV = self._log_p(states_NLD, keep)
        log_r_NKV = torch.zeros_like(log_p_NKV)
        for (scores, alpha), own_NKV in zip(self.shares, own, strict=True):
            log_r_NKV = log_r_NKV + alpha * (own_NKV - log_p_NKV if scores.is_policy else own_NKV)
        return log_p_NKV, log_r_NKV

    def _log_p(self, states_NLD: dict[int, Tensor], keep: int) -> Tensor:
        return self.base.head.logits(states_NLD[self.base.num_layers][:, -keep:])

    def _run(
        self, ids_NL: Tensor, cache: Cache, keep: int, where: dict[str, Tensor]
    ) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Run the base, if it is needed, and every factor; return its states by layer, and their logits."""
        first = self.base.num_layers if self.runs_base else 0
        states_NLD = self._base_states(ids_NL, layers_of(cache, 0, first), where) if first else {}
        own = []
        for scores, _ in self.shares:
            taps = [widened(states_NLD[self.base.layer(depth)], self.base.state_width) for depth in scores.depths]
            view = layers_of(cache, first, first + scores.own_layers)
            own.append(scores.own_logits(ids_NL, taps, view, keep, where))
            first += scores.own_layers
        return states_NLD, own

    def _base_states(self, ids_NL: Tensor, cache: Cache, where: dict[str, Tensor]) -> dict[int, Tensor]:
        """Run the base, adapters off, and return its last states and those that networks read, by layer."""
        last = self.base.num_layers
        wanted = {self.base.layer(depth) for scores, _ in self.shares for depth in scores.depths} - {last}
        with self.base.adapters(on=False):
            out = self.base.model.base_model(
                ids_NL, past_key_values=cache, use_cache=True, output_hidden_states=bool(wanted), **where
            )
        return {last: out.last_hidden_state} | {layer: out.hidden_states[layer] for layer in wanted}
