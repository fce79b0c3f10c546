"""Tokenisation into words for text metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence

Tokens = tuple[str, ...]

# Punctuation is dropped, an apostrophe inside a word is kept: "The dog's off-lead." is the / dog's / off / lead.
_WORD = re.compile(r"\w+(?:'\w+)*")


def tokenise(text: str) -> Tokens:
    """Split a text into lower-cased words without punctuation."""
    return tuple(_WORD.findall(text.lower()))


def ngrams(tokens: Sequence[str], n: int) -> list[Tokens]:
    """Return all runs of n tokens, in order, repeats included."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
