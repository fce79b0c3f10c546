"""Oracles made of oracles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dinado.oracles.oracle import Oracle
from dinado.prompt import Prompt


class _Pair(Oracle):
    """Two oracles; each is called with its own checks, so that an error names the part that failed."""

    symbol: str

    def __init__(self, left: Oracle, right: Oracle) -> None:
        self.left = left
        self.right = right

    @property
    def name(self) -> str:
        return f"({self.left.name} {self.symbol} {self.right.name})"

    def settings(self) -> Any:
        return self.left.fingerprint, self.right.fingerprint


class AllOf(_Pair):
    """``a & b = a b``."""

    symbol = "&"

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return self.left(prompts, texts) * self.right(prompts, texts)

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return (self.left.checked_progress(prompts, texts) + self.right.checked_progress(prompts, texts)) / 2


class AnyOf(_Pair):
    """``a | b = 1 - (1 - a)(1 - b)``."""

    symbol = "|"

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return 1 - (1 - self.left(prompts, texts)) * (1 - self.right(prompts, texts))

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return self.left.checked_progress(prompts, texts).maximum(self.right.checked_progress(prompts, texts))


class Not(Oracle):
    """``~a = 1 - a``; ``~~a`` is ``a`` itself."""

    def __init__(self, inner: Oracle) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return f"~{self.inner.name}"

    def settings(self) -> Any:
        return self.inner.fingerprint

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return 1 - self.inner(prompts, texts)

    def __invert__(self) -> Oracle:
        return self.inner
