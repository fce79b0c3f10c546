"""BLEU-4."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU

from dinado.metrics.tokenise import Tokens


def bleu4(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Corpus BLEU-4 of tokenised texts in percent, with any number of references for each.

    Papineni et al. (2002) as sacrebleu computes it on given tokens: closest reference length, and the n-gram
    orders without a single match smoothed so that a small corpus is not simply 0.

    Args:
        hypotheses: N texts.
        references: for each, at least one reference.
    """
    streams = [
        [" ".join(group[i]) if i < len(group) else None for group in references]
        for i in range(max(map(len, references)))
    ]
    texts = [" ".join(text) for text in hypotheses]
    # None marks a missing reference, which sacrebleu knows and its type hints do not.
    return BLEU(tokenize="none", force=True).corpus_score(texts, streams).score  # type: ignore[arg-type]
