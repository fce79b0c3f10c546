"""CIDEr-D."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dinado.metrics.tokenise import Tokens, ngrams

_ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0  # width of the length penalty, in words


@dataclass(frozen=True)
class _Vector:
    """tf-idf weights of a text's n-grams with their Euclidean norm, for each order, and the text's length."""

    weights: tuple[dict[Tokens, float], ...]
    norms: tuple[float, ...]
    length: int


def cider(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Compute the mean CIDEr-D of tokenised texts, scaled by 10 as papers print it (a score of 1.42 is 14.2).

    CIDEr-D (Vedantam et al., 2015) is the mean over orders n = 1..4 and over references s of

        10 exp(-(|c| - |s|)^2 / (2 6^2)) <min(g_n(c), g_n(s)), g_n(s)> / (||g_n(c)|| ||g_n(s)||)

    with g_n(x) the n-gram counts of x times ``log(documents / documents that hold the n-gram)``. A document is one
    set of references; a set that serves several hypotheses counts once, so sampling more texts for each prompt
    does not change the scale of the score.

    Args:
        hypotheses: N texts, N > 0.
        references: at least one reference for each text.
    """
    documents = {tuple(group) for group in references}
    frequency: Counter[Tokens] = Counter()
    for document in documents:
        frequency.update({gram for text in document for n in _ORDERS for gram in ngrams(text, n)})
    log_documents = math.log(len(documents))

    def vector(text: Tokens) -> _Vector:
        weights = tuple(
            {
                gram: count * (log_documents - math.log(max(1, frequency[gram])))
                for gram, count in Counter(ngrams(text, n)).items()
            }
            for n in _ORDERS
        )
        norms = tuple(math.sqrt(sum(weight**2 for weight in order.values())) for order in weights)
        return _Vector(weights, norms, len(text))

    vectors = {document: [vector(text) for text in document] for document in documents}
    total = 0.0
    for hypothesis, group in zip(hypotheses, references, strict=True):
        candidate = vector(hypothesis)
        total += sum(_similarity(candidate, reference) for reference in vectors[tuple(group)]) / len(group)
    return 100 * total / len(hypotheses)


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Return the term of one reference, between 0 and 1."""
    total = 0.0
    for order in range(len(_ORDERS)):
        norms = candidate.norms[order] * reference.norms[order]
        if norms == 0:
            continue
        ours, theirs = candidate.weights[order], reference.weights[order]
        total += sum(min(ours[gram], theirs[gram]) * theirs[gram] for gram in ours.keys() & theirs.keys()) / norms
    penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * _SIGMA**2))
    return penalty * total / len(_ORDERS)
