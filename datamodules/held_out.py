"""Held-out rollouts: K of each prompt, and on to the first accepted one where the oracle accepts none of them.

More of them are drawn in stages, each as long as everything before it, for the prompts that are still without an
accepted rollout. A rollout has the random stream of its prompt and number, so stages do not decide what is drawn.
Axes: N rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from datamodules.run_stores import RunStores
from datamodules.tasks import Task
from datamodules.training_rows import Rows, rows_by_prompt
from dinado.bases.causal import BaseLM
from dinado.metrics.distance import RESOLVED, PromptDraws
from dinado.objectives.weights import smoothed_root
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.rollout_table import Rollouts
from dinado.seeding import uniform_numbers
from workbench.settings.config import Config


@dataclass(frozen=True)
class FirstAccepted:
    """A prompt's first accepted rollout after the K that every prompt has.

    Attributes:
        place: position of the prompt.
        draw: number of the rollout among all draws of the prompt, counted from 1.
        rollouts, row: where its tokens lie.
    """

    place: int
    draw: int
    rollouts: Rollouts
    row: int


@dataclass(frozen=True)
class HeldOutRollouts:
    """All held-out rollouts that enter the numbers of a run.

    Attributes:
        rollouts: K of each prompt.
        accepted_N: which of them were accepted; a fractional verdict C accepts with probability C.
        later: the first accepted rollouts of prompts without one among the K.
        most: draws of a prompt of which none was accepted.
    """

    rollouts: Rollouts
    accepted_N: np.ndarray
    later: list[FirstAccepted]
    most: int

    def of_base(self) -> list[PromptDraws]:
        """Return the draws of each prompt with the base in place of a model, log p - log q = 0."""
        draws = {one.place: one.draw for one in self.later}
        found = []
        for rows_K in rows_by_prompt(self.rollouts.prompt_index_N):
            first = draws.get(int(self.rollouts.prompt_index_N[rows_K[0]]))
            accepted = int(self.accepted_N[rows_K].sum())
            found.append(PromptDraws(len(rows_K), [0.0] * (accepted or int(first is not None)), first, self.most))
        return found

    def rows(self) -> Rows:
        """Return training-like rows of weight 1 for validation: the K of each prompt, then the later accepted ones."""
        rollouts, later = self.rollouts, self.later
        root_P = {
            int(rollouts.prompt_index_N[rows_K[0]]): float(smoothed_root(torch.tensor(rollouts.score_N[rows_K])))
            for rows_K in rows_by_prompt(rollouts.prompt_index_N)
        }
        prompt_index_N = np.concatenate([rollouts.prompt_index_N, [one.place for one in later]]).astype(np.int64)

        def response(row: int) -> tuple[np.ndarray, np.ndarray]:
            if row < len(rollouts):
                return rollouts.response(row)
            one = later[row - len(rollouts)]
            return one.rollouts.response(one.row)

        def joined(values_N: np.ndarray, name: str) -> np.ndarray:
            return np.concatenate([values_N, [getattr(one.rollouts, name)[one.row] for one in later]]).astype(
                values_N.dtype
            )

        return Rows(
            prompt_index_N=prompt_index_N,
            length_N=joined(rollouts.length_N, "length_N"),
            score_N=joined(rollouts.score_N, "score_N"),
            weight_N=np.ones(len(prompt_index_N), dtype=np.float32),
            root_N=np.array([root_P[place] for place in prompt_index_N.tolist()], dtype=np.float32),
            response=response,
            accepted_N=np.concatenate([self.accepted_N, np.ones(len(later), dtype=bool)]),
            draw_N=np.concatenate([np.zeros(len(rollouts), dtype=np.int64), [one.draw for one in later]]).astype(
                np.int64
            ),
            most=self.most,
        )


class HeldOut:
    """The stores of the held-out rollouts of a run.

    Args:
        config: ``eval.rollouts_per_prompt`` is K, ``eval.max_rollouts`` the limit of draws of a prompt.
    """

    def __init__(self, config: Config, base: BaseLM, task: Task) -> None:
        self._stores = RunStores(config, base, task)
        self._per_prompt = config.eval.rollouts_per_prompt
        self._limit = max(config.eval.max_rollouts, self._per_prompt)
        self._seed = config.rollouts.seed
        self._num_prompts = len(task.val_prompts)

    def missing(self) -> RolloutStore | None:
        """Return the next store that has to be filled; None when :meth:`read` can return everything."""
        found = self._walk()
        return found if isinstance(found, RolloutStore) else None

    def stores(self) -> list[RolloutStore]:
        """Return all stores; they have to be complete."""
        self._walk()
        return self._seen

    def read(self) -> HeldOutRollouts:
        """Return all held-out rollouts.

        Raises:
            StoreError: a store is incomplete or damaged.
        """
        found = self._walk()
        if isinstance(found, RolloutStore):
            found.read()  # says what is missing
            raise AssertionError("an incomplete store was read")
        return found

    def _walk(self) -> RolloutStore | HeldOutRollouts:
        """Follow the stages; return the first incomplete store, or what all of them hold."""
        store = self._stores.held_out()
        self._seen = [store]
        if not store.is_complete():
            return store
        rollouts = store.read()
        accepted_N = self._accepted(rollouts, range(self._num_prompts))
        still_open = sorted(set(range(self._num_prompts)) - set(rollouts.prompt_index_N[accepted_N].tolist()))
        later: list[FirstAccepted] = []
        drawn = self._per_prompt
        while still_open and drawn < self._limit and self._hopeful(drawn, len(still_open)):
            more = min(drawn, self._limit - drawn)
            store = self._stores.held_out(drawn, more, still_open)
            self._seen.append(store)
            if not store.is_complete():
                return store
            now = store.read()
            taken = set()
            for row in np.flatnonzero(self._accepted(now, still_open)).tolist():
                place = still_open[int(now.prompt_index_N[row])]
                if place not in taken:
                    taken.add(place)
                    later.append(FirstAccepted(place, int(now.sample_N[row]) + 1, now, row))
            still_open = [place for place in still_open if place not in taken]
            drawn += more
        return HeldOutRollouts(rollouts, accepted_N, later, drawn)

    def _accepted(self, rollouts: Rollouts, places: range | list[int]) -> np.ndarray:
        """Tell which rollouts are accepted, ``[N]``."""
        score_N = rollouts.score_N
        if np.isin(score_N, (0.0, 1.0)).all():
            return score_N > 0.5
        uniform_N = [
            uniform_numbers(1, self._seed, "acceptance", places[int(position)], int(sample))[0]
            for position, sample in zip(rollouts.prompt_index_N, rollouts.sample_N, strict=True)
        ]
        return np.asarray(uniform_N) < score_N

    def _hopeful(self, drawn: int, num_open: int) -> bool:
        """Tell whether going on may give enough prompts an accepted rollout for the distance to be told at all.

        Where none of all draws was accepted, the success rate is below 3 / draws (at 95 %).
        """
        if num_open < self._num_prompts:
            return True
        return 1 - math.exp(-3 * self._limit / (drawn * num_open)) >= RESOLVED
