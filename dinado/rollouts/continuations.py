"""Judgement of unfinished responses by the oracle: every prefix of a rollout, and every prefix plus one token.

Axes: T tokens of a response, K candidates for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dinado.batch import RolloutBatch
from dinado.oracles import Oracle
from dinado.prompt import Prompt

if TYPE_CHECKING:
    from dinado.bases.causal import BaseLM

Decode = Callable[[Sequence[int]], str]


class Likeliest(NamedTuple):
    """The base's likeliest next tokens at each position of a response, likeliest first.

    Attributes:
        candidate_TK: the tokens.
        log_p_TK: their log-probabilities.
    """

    candidate_TK: np.ndarray
    log_p_TK: np.ndarray


class Lookahead(NamedTuple):
    """The oracle's progress along one response, and its outlook for the likely tokens at each position.

    Attributes:
        progress_T: progress of the text before each token.
        candidate_TK: the base's likeliest next tokens, likeliest first.
        log_p_TK: their log-probabilities.
        outlook_TK: the oracle's verdict where the candidate ends the response, else the progress with the candidate.
    """

    progress_T: np.ndarray
    candidate_TK: np.ndarray
    log_p_TK: np.ndarray
    outlook_TK: np.ndarray


@torch.no_grad()
def likeliest(base: BaseLM, batch: RolloutBatch, num_candidates: int) -> list[Likeliest]:
    """Return the base's K likeliest tokens at each position of each row, by one pass over the texts."""
    hidden_BTD = base.states(batch).hidden_BTD
    found = []
    for hidden_TD, mask_T in zip(hidden_BTD, batch.response_mask_BT, strict=True):
        log_p_TK, token_TK = largest(base.head.logits(hidden_TD[mask_T.bool()]).log_softmax(-1), num_candidates)
        found.append(Likeliest(token_TK.cpu().numpy().astype(np.int32), log_p_TK.cpu().numpy()))
    return found


def largest(log_p_NV: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """Return the K largest log-probabilities of each row and their tokens; K is at most the vocabulary."""
    log_p_NK, token_NK = log_p_NV.topk(min(num_candidates, log_p_NV.shape[1]), -1)
    return log_p_NK, token_NK


class LikeliestSeen:
    """A collector of the likeliest tokens of a sampling loop, so that the texts need not be read a second time.

    Args:
        num_candidates: number of tokens K to keep at each position.
    """

    def __init__(self, num_candidates: int) -> None:
        self._num_candidates = num_candidates
        self._rows: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._log_p: list[Tensor] = []

    def add(self, log_p_NV: Tensor, rows_N: Tensor) -> None:
        """Append the next position of some rows; ``rows_N`` are their numbers."""
        log_p_NK, token_NK = largest(log_p_NV, self._num_candidates)
        self._rows.append(rows_N)
        self._tokens.append(token_NK.int())
        self._log_p.append(log_p_NK)

    def result(self, num_rows: int) -> list[Likeliest]:
        """Return what was seen, row by row."""
        rows_M = torch.cat(self._rows)
        order_M, counts = rows_M.argsort(stable=True), torch.bincount(rows_M, minlength=num_rows).tolist()
        tokens, log_p = (torch.cat(seen)[order_M].cpu().split(counts) for seen in (self._tokens, self._log_p))
        return [Likeliest(token.numpy(), values.numpy()) for token, values in zip(tokens, log_p, strict=True)]


def look_ahead(
    oracle: Oracle,
    prompt: Prompt,
    tokens: Sequence[int],
    candidate_TK: np.ndarray,
    log_p_TK: np.ndarray,
    decode: Decode,
    *,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    judge_truncated: bool,
) -> Lookahead:
    """Ask the oracle about every prefix of a response and every candidate after it.

    Args:
        max_new_tokens: a candidate that fills this budget ends the response, truncated unless it is an end of sequence.
        judge_truncated: whether a truncated response is judged; otherwise it has failed.

    Raises:
        OracleError: the oracle failed.
    """
    unfinished, finished = _Questions(), _Questions()
    before_T, outlook_TK = [], []
    for t, candidate_K in enumerate(candidate_TK.tolist()):
        prefix = list(tokens[:t])
        before_T.append(unfinished.ask(decode(prefix)))
        row = []
        for token in candidate_K:
            if token in eos_ids:
                row.append((finished, finished.ask(decode(prefix))))
            elif t + 1 < max_new_tokens:
                row.append((unfinished, unfinished.ask(decode([*prefix, token]))))
            else:
                row.append((finished, finished.ask(decode([*prefix, token])) if judge_truncated else -1))
        outlook_TK.append(row)
    unfinished.answer(oracle.checked_progress, prompt)
    finished.answer(oracle, prompt)
    return Lookahead(
        np.array([unfinished.answers[place] for place in before_T], dtype=np.float32),
        candidate_TK,
        log_p_TK,
        np.array([[asked.answers[place] for asked, place in row] for row in outlook_TK], dtype=np.float32),
    )


class _Questions:
    """A set of distinct texts that are judged together."""

    def __init__(self) -> None:
        self._place_of: dict[str, int] = {}
        self.answers: list[float] = []

    def ask(self, text: str) -> int:
        """Add a text; return the index of its answer."""
        return self._place_of.setdefault(text, len(self._place_of))

    def answer(self, judge: Callable[[Sequence[Prompt], Sequence[str]], torch.Tensor], prompt: Prompt) -> None:
        """Judge all texts; an extra last answer, at index -1, is failure."""
        texts = list(self._place_of)
        self.answers = [*judge([prompt] * len(texts), texts).tolist(), 0.0]
