"""Where a distance comes from: its nats by kind of token and by position in the text.

Along accepted held-out texts, which are samples of q*, log p - log q of every token adds up to KL(q*||q) - KL(q*||p);
along samples of q, log q - log p adds up to KL(q||p). Axes: T tokens of one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dinado.oracles import Oracle
from dinado.prompt import Prompt

END, PROGRESS, OTHER = "end of sequence", "tokens that make progress", "all other tokens"
KINDS = (END, PROGRESS, OTHER)
EDGES = (0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Positions at which the ranges of the table begin; the last is open."""


@dataclass
class Nats:
    """Sums over texts, each text counted with a weight, by name of a part: weight times tokens, and times nats."""

    tokens: dict[str, float] = field(default_factory=dict)
    nats: dict[str, float] = field(default_factory=dict)
    weight: float = 0.0

    def add(self, parts: Sequence[str], nats_T: np.ndarray, weight: float) -> None:
        """Add a text.

        Args:
            parts: the part of each token.
            nats_T: what each token contributes.
        """
        for part, nats in zip(parts, nats_T.tolist(), strict=True):
            self.tokens[part] = self.tokens.get(part, 0.0) + weight
            self.nats[part] = self.nats.get(part, 0.0) + weight * nats

    def per_text(self, part: str) -> tuple[float, float]:
        """Return tokens and nats of a part in the mean text."""
        return self.tokens.get(part, 0.0) / self.weight, self.nats.get(part, 0.0) / self.weight


class Decomposition:
    """The nats of some texts by kind of token and by position.

    Args:
        oracle: tells by its progress which tokens bring a text closer to acceptance.
        eos_ids: tokens that end a text.
    """

    def __init__(self, oracle: Oracle, eos_ids: Sequence[int]) -> None:
        self._oracle = oracle
        self._eos_ids = set(eos_ids)
        self.by_kind, self.by_position = Nats(), Nats()

    def add(
        self, prompt: Prompt, tokens: Sequence[int], prefixes: Sequence[str], nats_T: np.ndarray, weight: float
    ) -> None:
        """Add a text.

        Args:
            prefixes: the decoded first 0, ..., T tokens.
            weight: what the text counts for.
        """
        progress = self._oracle.checked_progress([prompt] * len(prefixes), list(prefixes)).tolist()
        kinds = [
            END if token in self._eos_ids else PROGRESS if progress[t + 1] > progress[t] + 1e-6 else OTHER
            for t, token in enumerate(tokens)
        ]
        self.by_kind.add(kinds, nats_T, weight)
        self.by_position.add([position(t) for t in range(len(tokens))], nats_T, weight)
        self.by_kind.weight += weight
        self.by_position.weight += weight


def position(index: int) -> str:
    """Return the range that a token's position falls into, as ``4-7``."""
    start = max(edge for edge in EDGES if edge <= index)
    after = [edge for edge in EDGES if edge > start]
    return f"{start}-{after[0] - 1}" if after else f"from {start}"


def rows(optimum: Decomposition, cost: Decomposition) -> list[dict[str, float | str]]:
    """Return the table: for every part its tokens and nats along samples of q*, and along samples of q."""
    found: list[dict[str, float | str]] = []
    places = [position(edge) for edge in EDGES]
    for side, parts in (("by_kind", KINDS), ("by_position", places)):
        of_optimum, of_cost = getattr(optimum, side), getattr(cost, side)
        for part in parts:
            if part not in of_optimum.tokens and part not in of_cost.tokens:
                continue
            tokens, nats = of_optimum.per_text(part)
            cost_tokens, cost_nats = of_cost.per_text(part)
            found.append(
                {
                    "part": part if side == "by_kind" else f"tokens {part}",
                    "q* tokens": tokens,
                    "KL(q*||q) - KL(q*||p)": nats,
                    "q tokens": cost_tokens,
                    "KL(q||p)": cost_nats,
                }
            )
    return found
