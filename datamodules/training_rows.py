"""Training rows: what batches are made of, wherever it comes from.

Axes: N rows, K rows of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dinado.objectives.weights import smoothed_root
from dinado.rollouts.rollout_table import Rollouts


class LookaheadTarget(NamedTuple):
    """One row of ``RolloutBatch``'s lookahead fields: ``[T, K]``, ``[T, K + 1]`` and ``[T]``."""

    candidate_TK: np.ndarray
    log_target_TL: np.ndarray
    value_T: np.ndarray


class RowStates(NamedTuple):
    """Recorded states of the base, by position of the prompt and by row: ``[S, J, D]`` and ``[R, J, D]``."""

    depths: tuple[int, ...]
    prompt: Callable[[int], torch.Tensor]
    response: Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """Responses with their targets, tokens read only when asked for.

    Attributes:
        prompt_index_N: position of the prompt in the task's list.
        length_N: tokens in the response.
        score_N, weight_N, root_N: oracle score, importance weight and R(c), see ``RolloutBatch``.
        response: row -> (token ids, log-probabilities under the base or None where they are not known).
        lookahead_N: targets of each row, where the objective asks for them.
        states: the frozen base's states, where they were recorded.
    """

    prompt_index_N: np.ndarray
    length_N: np.ndarray
    score_N: np.ndarray
    weight_N: np.ndarray
    root_N: np.ndarray
    response: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
    lookahead_N: list[LookaheadTarget] | None = None
    states: RowStates | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.prompt_index_N)


def equal_rows(rollouts: Rollouts) -> Rows:
    """Rows of exact draws from the base: weights of 1, and each prompt's success rate."""
    root_N = np.zeros(len(rollouts), dtype=np.float32)
    for rows_K in rows_by_prompt(rollouts.prompt_index_N):
        root_N[rows_K] = smoothed_root(torch.tensor(rollouts.score_N[rows_K]))
    one_N = np.ones(len(rollouts), dtype=np.float32)
    return Rows(rollouts.prompt_index_N, rollouts.length_N, rollouts.score_N, one_N, root_N, rollouts.response)


def rows_by_prompt(prompt_index_N: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each prompt that has any, by prompt index, in order."""
    order_N = np.argsort(prompt_index_N, kind="stable")
    changes = np.flatnonzero(np.diff(prompt_index_N[order_N])) + 1
    return np.split(order_N, changes) if len(order_N) else []
