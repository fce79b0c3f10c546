"""Hidden states collected while sampling, so that no text has to be read twice.

Axes: P prompts, S prompt tokens, N rows, R response tokens but the last, J depths, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TracedStates(NamedTuple):
    """Hidden states of sampled responses and their prompts, without padding.

    Attributes:
        prompts: ``[S, J, D]`` for each prompt.
        responses: ``[R, J, D]`` for each row: the state after every token but the last, which predicts no token.
    """

    prompts: list[Tensor]
    responses: list[Tensor]


class Trace:
    """A collector of the states of a sampling loop, step by step."""

    def __init__(self) -> None:
        self._prompts: list[Tensor] = []
        self._states: list[Tensor] = []
        self._rows: list[Tensor] = []

    def begin(self, states_PSJD: Tensor, mask_PS: Tensor) -> None:
        """Start with the states of the prompts."""
        self._prompts = [at_SJD[mask_S.bool()] for at_SJD, mask_S in zip(states_PSJD, mask_PS, strict=True)]
        # With a budget of one token there is no step; the empty tensors keep the width of rows without a state.
        self._states, self._rows = [states_PSJD[:0, 0]], [mask_PS.new_zeros(0)]

    def add(self, states_MJD: Tensor, rows_M: Tensor) -> None:
        """Append the states of some rows after one more token each."""
        self._states.append(states_MJD)
        self._rows.append(rows_M)

    def result(self, num_rows: int) -> TracedStates:
        """Return all states, row by row."""
        rows = torch.cat(self._rows)
        counts = torch.bincount(rows, minlength=num_rows).tolist()
        return TracedStates(self._prompts, list(torch.cat(self._states)[rows.argsort(stable=True)].split(counts)))
