"""ROUGE-L."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dinado.metrics.tokenise import Tokens

_BETA = 1.2  # weight of recall relative to precision


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Compute the mean ROUGE-L of tokenised texts in percent, by the definition of the COCO caption evaluation.

    The score of a text is ``(1 + b^2) P R / (R + b^2 P)`` with b = 1.2, where P and R are the largest precision and
    the largest recall of the longest common subsequence over the references (Lin, 2004), possibly of different ones.

    Args:
        hypotheses: N texts, N > 0.
        references: at least one reference for each text.
    """
    return 100 * sum(map(_score, hypotheses, references)) / len(hypotheses)


def _score(hypothesis: Tokens, references: Sequence[Tokens]) -> float:
    common = [common_length(hypothesis, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(length / max(1, len(reference)) for length, reference in zip(common, references, strict=True))
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Compute the length of the longest common subsequence.

    One row of the usual table is an integer whose bit i is 0 where the row grows at position i of `first`, so a
    token of `second` costs a few integer operations (Hyyro, 2004).
    """
    positions: dict[str, int] = defaultdict(int)
    for i, token in enumerate(first):
        positions[token] |= 1 << i
    everywhere = (1 << len(first)) - 1
    row = everywhere
    for token in second:
        matches = row & positions.get(token, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return len(first) - row.bit_count()
