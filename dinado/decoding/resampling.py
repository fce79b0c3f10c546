"""Resampling: of K weighted texts for a prompt, one is returned in proportion to its weight.

The K texts are independent samples of q (sampling-importance-resampling; Rubin, 1987), or particles of sequential
Monte Carlo. What is returned comes nearer to q* with K: KL(returned || q*) <= log R(c) - E log Z_K, where Z_K is the
mean weight of K texts (dinado/decoding/bounds.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.answers import Answer, choose_one
from dinado.decoding.smc import SMCSettings, smc
from dinado.decoding.twists import Twist
from dinado.decoding.weighted_texts import WeightedTexts, draw_weighted
from dinado.oracles import Oracle
from dinado.prompt import Prompt


def resample(
    model: ControlledLM,
    oracle: Oracle,
    prompts: Sequence[Prompt],
    *,
    texts: int,
    max_new_tokens: int,
    truncated: str = "fail",
    budget: int | None = None,
    seed: int = 0,
    offset: int = 0,
    twist: Twist | None = None,
    threshold: float = 0.5,
    every: int = 4,
) -> list[Answer]:
    """Return a text for each prompt, chosen among K.

    Args:
        texts: K.
        budget: largest number of texts of a prompt; K more are drawn as long as none is accepted. None draws K.
        offset: number of the first prompt, which names its random streams.
        twist: estimates the value of unfinished texts; the K texts are then particles of sequential Monte Carlo.
        threshold, every: when particles are resampled, see :class:`~dinado.decoding.smc.SMCSettings`.

    Raises:
        ValueError: K is not positive, or larger than the budget.
    """
    budget = texts if budget is None else budget
    if not 0 < texts <= budget:
        raise ValueError(f"{texts} texts of a budget of {budget}; draw at least one, and no more than the budget")
    common: dict[str, Any] = {"max_new_tokens": max_new_tokens, "truncated": truncated, "seed": seed, "offset": offset}

    def draw(first: int, places: Sequence[int]) -> list[WeightedTexts]:
        if twist is None:
            return draw_weighted(model, oracle, prompts, texts=texts, first=first, places=places, **common)
        settings = SMCSettings(texts, threshold, every)
        return smc(model, oracle, prompts, twist, settings, first=first, places=places, **common)

    last: dict[int, WeightedTexts] = {}
    tokens, drawn = [0] * len(prompts), [0] * len(prompts)
    waiting = list(range(len(prompts)))
    for first in range(0, budget - texts + 1, texts):
        if not waiting:
            break
        found = draw(first, waiting)
        for place, one in zip(waiting, found, strict=True):
            last[place] = one
            drawn[place] += texts
            tokens[place] += sum(one.samples.num_tokens)
        waiting = [place for place in waiting if not last[place].any_accepted]
    return [choose_one(last[place], offset + place, drawn[place], tokens[place], seed) for place in range(len(prompts))]
