"""Similarity of texts to references."""

from __future__ import annotations

from collections.abc import Sequence

from dinado.metrics.bleu import bleu4
from dinado.metrics.cider import cider
from dinado.metrics.rouge import rouge_l
from dinado.metrics.tokenise import tokenise


def text_metrics(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute BLEU-4, ROUGE-L and CIDEr of a corpus, as papers scale them.

    These are statistics of the whole corpus and do not average over its parts: gather the texts of all processes
    first.

    Args:
        hypotheses: N texts.
        references: references of each text; a text without any is left out.

    Returns:
        ``bleu4`` and ``rouge_l`` from 0 to 100 and ``cider`` times 10; empty if no text has references.
    """
    pairs = [(text, group) for text, group in zip(hypotheses, references, strict=True) if group]
    if not pairs:
        return {}
    texts = [tokenise(text) for text, _ in pairs]
    groups = [[tokenise(reference) for reference in group] for _, group in pairs]
    return {"bleu4": bleu4(texts, groups), "rouge_l": rouge_l(texts, groups), "cider": cider(texts, groups)}
