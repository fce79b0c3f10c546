"""Diversity of samples."""

from __future__ import annotations

from collections.abc import Sequence

from dinado.metrics.tokenise import ngrams, tokenise


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Compute distinct n-grams over all n-grams of the texts together (Li et al., 2016); NaN if there are none.

    It falls as texts are added, so compare equal numbers of samples.
    """
    grams = [gram for text in texts for gram in ngrams(tokenise(text), n)]
    return len(set(grams)) / len(grams) if grams else float("nan")
