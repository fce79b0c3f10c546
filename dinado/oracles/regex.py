"""The oracle of regular expressions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dinado.errors import OracleError
from dinado.oracles.oracle import Oracle
from dinado.prompt import Prompt


class RegexOracle(Oracle):
    """An oracle that gives 1 if the pattern is found anywhere in the text, else 0.

    Raises:
        OracleError: the pattern is not a regular expression.
    """

    def __init__(self, pattern: str, ignore_case: bool = True) -> None:
        try:
            self.pattern = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        except re.error as error:
            raise OracleError(f"oracle.pattern {pattern!r} is not a regular expression: {error}") from error

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [float(self.pattern.search(text) is not None) for text in texts]
