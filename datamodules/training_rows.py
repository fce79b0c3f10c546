"""Training rows, of which batches are made, whatever their source.

Axes: N rows, K rows of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


class LookaheadTarget(NamedTuple):
    """The lookahead fields of one row of a ``RolloutBatch``: ``[T, K]``, ``[T, K + 1]`` and ``[T]``."""

    candidate_TK: np.ndarray
    log_target_TL: np.ndarray
    value_T: np.ndarray


class RowStates(NamedTuple):
    """Functions that read recorded states of the base: ``[S, J, D]`` of a prompt position, ``[R, J, D]`` of a row."""

    depths: tuple[int, ...]
    prompt: Callable[[int], torch.Tensor]
    response: Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """Responses with their targets; tokens are read on demand.

    Attributes:
        prompt_index_N: position of the prompt in the task's list.
        length_N: tokens in the response.
        score_N, weight_N, root_N: oracle score, importance weight and R(c), see ``RolloutBatch``.
        response: row -> (token ids, log-probabilities under the base or None where they are unknown).
        lookahead_N: lookahead targets of each row; None where the objective does not use them.
        states: the frozen base's states; None where they are not recorded.
        accepted_N, draw_N: for held-out rows, see ``HeldOutVerdicts``.
        most: the same.
    """

    prompt_index_N: np.ndarray
    length_N: np.ndarray
    score_N: np.ndarray
    weight_N: np.ndarray
    root_N: np.ndarray
    response: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
    lookahead_N: list[LookaheadTarget] | None = None
    states: RowStates | None = None
    accepted_N: np.ndarray | None = None
    draw_N: np.ndarray | None = None
    most: int = 0

    def __len__(self) -> int:
        """Return the number of rows N."""
        return len(self.prompt_index_N)


def rows_by_prompt(prompt_index_N: np.ndarray) -> list[np.ndarray]:
    """Return the row numbers of each prompt that has any, in the order of prompt indices."""
    order_N = np.argsort(prompt_index_N, kind="stable")
    changes = np.flatnonzero(np.diff(prompt_index_N[order_N])) + 1
    return np.split(order_N, changes) if len(order_N) else []
