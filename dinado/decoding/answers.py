"""What the decoders toward q* return for a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dinado.decoding.log_weights import chosen, effective_number
from dinado.decoding.weighted_texts import WeightedTexts
from dinado.seeding import uniform_numbers


@dataclass(frozen=True)
class Answer:
    """A text that was chosen for a prompt.

    Attributes:
        text, tokens: the text, and its token ids.
        accepted: whether the oracle accepts it; if not, none of the texts that were drawn was accepted.
        score: the verdict.
        log_weight: log p C / q of the text by itself; -inf if it is rejected.
        num_texts, num_tokens: texts and tokens that were sampled for it.
        effective: effective number of the texts that it was chosen from.
        log_z: log of their mean weight, an estimate of log R(c); -inf if none was accepted.
    """

    text: str
    tokens: Sequence[int]
    accepted: bool
    score: float
    log_weight: float
    num_texts: int
    num_tokens: int
    effective: float
    log_z: float


def choose_one(found: WeightedTexts, place: int, num_texts: int, num_tokens: int, seed: int) -> Answer:
    """Choose one of K weighted texts in proportion to its weight.

    Args:
        place: number of the prompt, which names the random stream.
    """
    index = chosen(found.log_weight_K, float(uniform_numbers(1, seed, "choice", place)[0]))
    return answer_of(found, index, num_texts, num_tokens)


def answer_of(found: WeightedTexts, index: int, num_texts: int, num_tokens: int) -> Answer:
    """Return one of K weighted texts as the answer."""
    samples = found.samples
    return Answer(
        text=samples.texts[index],
        tokens=samples.tokens[index],
        accepted=samples.score[index] > 0,
        score=samples.score[index],
        log_weight=float(WeightedTexts.of(samples.take([index])).log_weight_K[0]),
        num_texts=num_texts,
        num_tokens=num_tokens,
        effective=effective_number(found.log_weight_K),
        log_z=found.log_z,
    )
