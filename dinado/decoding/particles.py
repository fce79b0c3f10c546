"""Texts in the making of sequential Monte Carlo: K particles a prompt, which may be copied and dropped on the way.

Axes: G prompts, K particles, N = G * K particles in all, grouped by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dinado.decoding.log_weights import effective_number, log_mean
from dinado.decoding.systematic import ancestors, ancestors_retaining


class Particles:
    """The texts so far, and their weights.

    The weight of a particle is the group's constant times the change of ``p psi / q`` since it was last copied.

    Args:
        groups: number of prompts G.
        size: particles K of each.

    Attributes:
        tokens: token ids of each particle.
        log_q_N: log-probability of its tokens under q.
        ended_N: whether it has its end of sequence.
        now_N: log p psi / q at the last weighing, with the verdict for psi once it has ended; -inf if it was rejected.
        log_weight_GK: log weights at the last weighing; their mean estimates R(c), with the last twist for the verdict.
    """

    def __init__(self, groups: int, size: int) -> None:
        self.size = size
        self.tokens: list[list[int]] = [[] for _ in range(groups * size)]
        self.log_q_N = np.zeros(groups * size)
        self.ended_N = np.zeros(groups * size, dtype=bool)
        self.now_N = np.zeros(groups * size)
        self.log_weight_GK = np.zeros((groups, size))
        self._then_N = np.zeros(groups * size)
        self._constant_G = np.zeros(groups)

    def weigh(self) -> None:
        """Compute the weights from the present ``now_N``."""
        self.log_weight_GK = self._constant_G[:, None] + (self.now_N - self._then_N).reshape(-1, self.size)

    def resample(
        self, threshold: float, uniform_G: np.ndarray, retained_G: Sequence[int | None]
    ) -> tuple[np.ndarray | None, list[int | None]]:
        """Copy heavy particles over light ones where few are effective.

        Args:
            threshold: the effective number, as a share of K, below which a prompt's particles are resampled.
            uniform_G: a uniform number for each prompt.
            retained_G: slot of a particle that stays; None for a prompt without one.

        Returns:
            The former number of each particle, ``[N]``, or None if nothing changed; and the retained ones' new slots.
        """
        source_N, slots, moved = np.arange(len(self.tokens)), list(retained_G), False
        for group, log_weight_K in enumerate(self.log_weight_GK):
            if np.isneginf(log_weight_K).all() or effective_number(log_weight_K) >= threshold * self.size:
                continue
            retained, first = retained_G[group], group * self.size
            if retained is None:
                ancestor_K = ancestors(log_weight_K, uniform_G[group])
            else:
                ancestor_K, slots[group] = ancestors_retaining(log_weight_K, retained, uniform_G[group])
            source_N[first : first + self.size] = first + ancestor_K
            self._constant_G[group] = log_mean(log_weight_K)
            self._then_N[first : first + self.size] = self.now_N[first + ancestor_K]
            moved = True
        if not moved:
            return None, slots
        self.tokens = [list(self.tokens[source]) for source in source_N]
        self.log_q_N, self.ended_N, self.now_N = self.log_q_N[source_N], self.ended_N[source_N], self.now_N[source_N]
        self.weigh()
        return source_N, slots
