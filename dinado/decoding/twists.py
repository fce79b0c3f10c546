"""Twists of sequential Monte Carlo: estimates of R(c, y_<=t) for texts that have not ended.

A twist decides which unfinished texts are copied and which are dropped. It need not be right: the weights take it out
again, and a bad one costs effective texts alone. Axes: N unfinished texts, K particles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.control.prefix_critic import PrefixCritic
from dinado.oracles import Oracle
from dinado.prompt import Prompt

LEAST = -12.0
"""Smallest log twist: a text that could still be accepted is never given up for certain."""


class Twist(Protocol):
    """A function that estimates the value of unfinished texts."""

    def __call__(self, batch: RolloutBatch, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Return log R(c, y_<=t), ``[N]`` float64.

        Args:
            batch: the texts as a batch without verdicts.
            prompts: the prompt of each text.
            tokens: token ids of each text, none of which ends it.
        """


class CriticTwist:
    """A twist from the oracle's progress on the text so far, by a critic that was fitted to rollouts.

    It serves methods whose own value is no news, such as DiNADO-Hard: its R follows from log q - log p alone, so that
    all its incremental weights are 1.

    Args:
        critic: predicts the verdict from progress, the tokens left, and how often the last token ends a text.
    """

    def __init__(self, critic: PrefixCritic, oracle: Oracle, base: BaseLM) -> None:
        self._critic, self._oracle, self._base = critic, oracle, base

    def __call__(self, batch: RolloutBatch, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the critic's log R(c, y_<=t), ``[N]``."""
        texts = [self._base.decode(row) for row in tokens]
        progress_N = self._oracle.checked_progress(prompts, texts).numpy()
        last_N, used_N = np.array([row[-1] for row in tokens]), np.array([len(row) for row in tokens])
        value_N = self._critic.of_prefixes(progress_N, last_N, used_N).double().numpy()
        return np.log(value_N).clip(LEAST, 0.0)


def product_of(twists: Sequence[Twist]) -> Twist:
    """Return the product of the twists of several oracles, the value of all of them where they are independent."""

    def product(batch: RolloutBatch, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> np.ndarray:
        return np.sum([twist(batch, prompts, tokens) for twist in twists], axis=0)

    return product
