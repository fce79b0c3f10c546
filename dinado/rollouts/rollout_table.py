"""Stored rollouts as arrays: one number per row in memory, tokens read from the mapped files on demand.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dinado.prompt import Prompt
from dinado.rollouts.continuations import Lookahead
from dinado.rollouts.ragged import Ragged

TEXT_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt_index", pa.int32()),
        ("sample", pa.int32()),
        ("round", pa.int32()),
        ("tokens", pa.list_(pa.int32())),
        ("log_p", pa.list_(pa.float32())),
        ("log_s", pa.list_(pa.float32())),
        ("finished", pa.bool_()),
        ("text", pa.string()),
    ]
)
SCORE_SCHEMA = pa.schema([("prompt_id", pa.string()), ("sample", pa.int32()), ("score", pa.float32())])
LIKELIEST_SCHEMA = pa.schema([("candidate_TK", pa.list_(pa.int32())), ("log_p_TK", pa.list_(pa.float32()))])
LOOKAHEAD_SCHEMA = pa.schema(
    [
        ("progress_T", pa.list_(pa.float32())),
        ("candidate_TK", pa.list_(pa.int32())),
        ("log_p_TK", pa.list_(pa.float32())),
        ("outlook_TK", pa.list_(pa.float32())),
    ]
)


class Rollouts:
    """The rows of a complete store, in the order of its prompts.

    Args:
        table: rows of ``TEXT_SCHEMA``, their ``score`` and, with candidates, ``LOOKAHEAD_SCHEMA``.
        prompts: the prompts that ``prompt_index`` points into.
        keep_truncated: keep responses that did not end within the budget.

    Attributes:
        prompt_index_N, sample_N, score_N, finished_N: columns of the kept rows.
        length_N: tokens in each response.
        log_p_N, log_s_N: log-probability of each whole response under the base and under the proposal, float64.
        truncated_share: share of rows that were truncated, whether kept or not.
    """

    def __init__(self, table: pa.Table, prompts: Sequence[Prompt], keep_truncated: bool = True) -> None:
        self.prompts = list(prompts)
        self._table = table
        finished_N = table["finished"].to_numpy()
        self.truncated_share = float(1 - finished_N.mean())
        kept_N = np.ones_like(finished_N) if keep_truncated else finished_N
        self._row_N = kept_N.nonzero()[0]
        self.finished_N = finished_N[kept_N]
        self.prompt_index_N = table["prompt_index"].to_numpy()[kept_N]
        self.sample_N = table["sample"].to_numpy()[kept_N]
        self.score_N = table["score"].to_numpy()[kept_N]
        self._tokens = Ragged(table["tokens"])
        self._log_p = Ragged(table["log_p"])
        self.length_N = self._tokens.length_N[kept_N]
        self.log_p_N = self._log_p.sums()[kept_N]
        self.log_s_N = Ragged(table["log_s"]).sums()[kept_N]
        names = [name for name in Lookahead._fields if name in table.column_names]
        self._lookahead = {name: Ragged(table[name]) for name in names}

    def __len__(self) -> int:
        """Return the number of kept rows N."""
        return len(self._row_N)

    def response(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids (int32) and their log-probabilities under the base (float32), without copying."""
        stored = self._row_N[row]
        return self._tokens[stored], self._log_p[stored]

    def lookahead(self, row: int) -> Lookahead:
        """Return the lookahead along a row; only for a store opened with candidates."""
        assert self._lookahead, "the store was opened without candidates"
        length = int(self.length_N[row])
        progress_T, *rest = (column[self._row_N[row]] for column in self._lookahead.values())
        return Lookahead(progress_T, *(values.reshape(length, -1) for values in rest))

    @property
    def stored_N(self) -> np.ndarray:
        """The position of every row in the store, with dropped rows counted."""
        return self._row_N

    def text(self, row: int) -> str:
        """Return the decoded response."""
        return self._table["text"][int(self._row_N[row])].as_py()

    @property
    def distinct_share(self) -> float:
        """The number of distinct (prompt, text) pairs over the number of rows."""
        texts = self._table["text"].take(pa.array(self._row_N)).to_pylist()
        return len(set(zip(self.prompt_index_N.tolist(), texts, strict=True))) / max(len(self), 1)


def store_summary(rollouts: Rollouts) -> dict[str, float]:
    """Return the statistics of a store that are logged."""
    return {
        "rollouts/success": float(rollouts.score_N.mean()) if len(rollouts) else 0.0,
        "rollouts/distinct": rollouts.distinct_share,
        "rollouts/truncated": rollouts.truncated_share,
        "rollouts/tokens": float(rollouts.length_N.sum()),
    }
