"""Sampling-importance-resampling: of K texts of q for a prompt, one is returned in proportion to its weight.

What is returned comes nearer to q* with K (Rubin, 1987): KL(returned || q*) <= log R(c) - E log Z_K, where Z_K is the
mean weight of K texts (dinado/decoding/bounds.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.answers import Answer, choose_one
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
) -> list[Answer]:
    """Return a text for each prompt, chosen among K.

    Args:
        texts: K.
        budget: largest number of texts of a prompt; K more are drawn as long as none is accepted. None draws K.
        offset: number of the first prompt, which names its random streams.

    Raises:
        ValueError: K is not positive, or larger than the budget.
    """
    budget = texts if budget is None else budget
    if not 0 < texts <= budget:
        raise ValueError(f"{texts} texts of a budget of {budget}; draw at least one, and no more than the budget")
    last: dict[int, WeightedTexts] = {}
    tokens, drawn = [0] * len(prompts), [0] * len(prompts)
    waiting = list(range(len(prompts)))
    for first in range(0, budget - texts + 1, texts):
        if not waiting:
            break
        found = draw_weighted(
            model,
            oracle,
            prompts,
            texts=texts,
            max_new_tokens=max_new_tokens,
            truncated=truncated,
            seed=seed,
            first=first,
            places=waiting,
            offset=offset,
        )
        for place, one in zip(waiting, found, strict=True):
            last[place] = one
            drawn[place] += texts
            tokens[place] += sum(one.samples.num_tokens)
        waiting = [place for place in waiting if not last[place].any_accepted]
    return [choose_one(last[place], offset + place, drawn[place], tokens[place], seed) for place in range(len(prompts))]
