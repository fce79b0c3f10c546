"""The oracle of text length."""

from __future__ import annotations

from collections.abc import Sequence

from dinado.errors import OracleError
from dinado.oracles.oracle import Oracle
from dinado.prompt import Prompt


class LengthOracle(Oracle):
    """An oracle that gives 1 if the text has ``min_words`` to ``max_words`` words, both included, else 0.

    A word is a run of characters between white space that contains a letter or digit.

    Raises:
        OracleError: the bounds accept every text or none.
    """

    def __init__(self, min_words: int = 0, max_words: int | None = None) -> None:
        if min_words <= 0 and max_words is None:
            raise OracleError("the length oracle accepts every text; set oracle.min_words or oracle.max_words")
        if max_words is not None and max_words < max(min_words, 0):
            raise OracleError(f"oracle.max_words={max_words} is less than oracle.min_words={min_words}; no text fits")
        self.min_words = min_words
        self.max_words = max_words

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [float(self._fits(_num_words(text))) for text in texts]

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """Return the share of the required words that are there; 0 once there are too many."""
        counts = [_num_words(text) for text in texts]
        least = max(self.min_words, 1)
        return [0.0 if self.max_words is not None and n > self.max_words else min(1.0, n / least) for n in counts]

    def _fits(self, num_words: int) -> bool:
        return num_words >= self.min_words and (self.max_words is None or num_words <= self.max_words)


def _num_words(text: str) -> int:
    return sum(any(map(str.isalnum, word)) for word in text.split())
