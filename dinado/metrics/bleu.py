"""BLEU-4."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU

from dinado.metrics.tokenise import Tokens


def bleu4(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Compute the corpus BLEU-4 of tokenised texts in percent, with any number of references for each.

    This is BLEU (Papineni et al., 2002) as sacrebleu computes it on given tokens: with the closest reference length,
    and with smoothing of n-gram orders without a single match, so that a small corpus does not simply score 0.

    Args:
        hypotheses: N texts.
        references: at least one reference for each text.
    """
    streams = [
        [" ".join(group[i]) if i < len(group) else None for group in references]
        for i in range(max(map(len, references)))
    ]
    texts = [" ".join(text) for text in hypotheses]
    # None marks a missing reference, which sacrebleu accepts although its type hints do not.
    return BLEU(tokenize="none", force=True).corpus_score(texts, streams).score  # type: ignore[arg-type]
