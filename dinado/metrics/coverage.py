"""Coverage of concepts."""

from __future__ import annotations

from collections.abc import Sequence

from dinado.metrics.success import WeightedMean
from dinado.oracles.lexical import LexicalOracle
from dinado.prompt import Prompt


class MicroCoverage(WeightedMean):
    """The number of concepts found over the number required, both summed over all texts of all processes.

    It is softer than success, which requires all concepts of a text at once.
    """

    def __init__(self, oracle: LexicalOracle) -> None:
        super().__init__()
        self.oracle = oracle

    def update(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> None:  # type: ignore[override]
        found, asked = self.oracle.coverage(prompts, texts)
        self.num += found
        self.den += asked
