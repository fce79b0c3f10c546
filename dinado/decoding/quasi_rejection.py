"""Quasi-rejection sampling: a text of q is accepted with probability min(1, p C / (beta q)).

Where beta is an upper bound of ``w = p C / q``, what is accepted comes from q*; a smaller beta costs fewer texts and
leaves a distance, which follows from the same weights (Eikema et al., 2022). What is accepted has the distribution

    q_beta = min(beta q, p C) / Z_beta,        Z_beta = E_q min(beta, w) = beta * (rate of acceptance)

so that KL(q*||q_beta) = log(Z_beta / R) + E_{q*} max(0, log w - log beta). Axes: K texts of one prompt, D dial points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.answers import Answer, answer_of
from dinado.decoding.log_weights import log_mean, log_sum
from dinado.decoding.weighted_texts import WeightedTexts, draw_weighted
from dinado.oracles import Oracle
from dinado.prompt import Prompt
from dinado.seeding import uniform_numbers


class DialPoint(NamedTuple):
    """The cost and the distance of one beta.

    Attributes:
        log_beta: log of beta.
        rate: share of the texts of q that are accepted; a returned text costs 1 / rate of them on average.
        kl: KL(q*||q_beta), in nats.
    """

    log_beta: float
    rate: float
    kl: float


def dial_point(
    log_weight_K: np.ndarray, log_beta: float, exact_A: np.ndarray | None = None, log_r: float | None = None
) -> DialPoint:
    """Estimate cost and distance of a beta from weighted texts of q; NaN for the distance if nothing is accepted.

    Args:
        exact_A: log weights of texts of q*, such as accepted rollouts of the base. Without them its mean is taken over
            the texts of q by weight, which misses texts that q hardly ever writes: the distance is then too small.
        log_r: log R(c) if it is known; None estimates it by the mean weight.
    """
    log_capped = log_mean(np.minimum(log_weight_K, log_beta))
    found_K = log_weight_K[np.isfinite(log_weight_K)]
    if not len(found_K):
        return DialPoint(log_beta, 0.0, math.nan)
    if exact_A is None:
        excess = float(np.exp(found_K - log_sum(found_K)) @ np.maximum(0.0, found_K - log_beta))
    else:
        excess = float(np.maximum(0.0, exact_A - log_beta).mean())
    kl = log_capped - (log_mean(log_weight_K) if log_r is None else log_r) + excess
    return DialPoint(log_beta, math.exp(log_capped - log_beta), kl)


def dial(
    weights: Sequence[np.ndarray],
    log_betas: Sequence[float],
    exact: Sequence[np.ndarray] | None = None,
    log_r: Sequence[float] | None = None,
) -> list[DialPoint]:
    """Estimate the means over prompts of cost and distance at each beta; see :func:`dial_point`.

    Args:
        weights: log weights of texts of each prompt, ``[K]`` each; a prompt without an accepted one is left out.
        exact, log_r: log weights of texts of q*, and log R(c), of each prompt.
    """
    known = [place for place, log_weight_K in enumerate(weights) if np.isfinite(log_weight_K).any()]
    points = []
    for log_beta in log_betas:
        each = [
            dial_point(weights[i], log_beta, None if exact is None else exact[i], None if log_r is None else log_r[i])
            for i in known
        ]
        points.append(DialPoint(log_beta, *(float(np.mean([one[k] for one in each])) for k in (1, 2))))
    return points


def quasi_rejection(
    model: ControlledLM,
    oracle: Oracle,
    prompts: Sequence[Prompt],
    *,
    log_beta: float,
    texts: int,
    budget: int,
    max_new_tokens: int,
    truncated: str = "fail",
    seed: int = 0,
    offset: int = 0,
) -> list[Answer | None]:
    """Return the first text of each prompt that is accepted; None where the budget ends before one is.

    Args:
        texts: texts that are drawn together; the result does not depend on it, its cost does.
        budget: largest number of texts of a prompt, rounded down to a multiple of ``texts``.
        offset: number of the first prompt, which names its random streams.

    Raises:
        ValueError: ``texts`` is not positive, or larger than the budget.
    """
    if not 0 < texts <= budget:
        raise ValueError(f"{texts} texts of a budget of {budget}; draw at least one, and no more than the budget")
    answers: list[Answer | None] = [None] * len(prompts)
    tokens = [0] * len(prompts)
    waiting = list(range(len(prompts)))
    for first in range(0, budget - texts + 1, texts):
        if not waiting:
            break
        drawn = draw_weighted(
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
        for place, found in zip(waiting, drawn, strict=True):
            tokens[place] += sum(found.samples.num_tokens)
            if (index := _first_accepted(found, log_beta, seed, offset + place, first)) is not None:
                answers[place] = answer_of(found, index, first + index + 1, tokens[place])
        waiting = [place for place in waiting if answers[place] is None]
    return answers


def _first_accepted(found: WeightedTexts, log_beta: float, seed: int, name: int, first: int) -> int | None:
    """Return the first of some texts that is accepted; the number of a text names its random number."""
    for index, log_weight in enumerate(found.log_weight_K.tolist()):
        uniform = float(uniform_numbers(1, seed, "quasi-rejection", name, first + index)[0])
        if math.log(max(uniform, 1e-300)) < log_weight - log_beta:
            return index
    return None
