"""Arrow columns of lists, read without copying."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


class Ragged:
    """A column of lists of numbers; rows are views of the mapped file."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._offsets = [chunk.offsets.to_numpy() for chunk in column.chunks]
        self._values = [chunk.values.to_numpy() for chunk in column.chunks]
        self._start = np.cumsum([0] + [len(chunk) for chunk in column.chunks])
        self.length_N = np.concatenate([np.diff(offsets) for offsets in self._offsets])

    def __len__(self) -> int:
        return len(self.length_N)

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._start, row, side="right")) - 1
        offsets, index = self._offsets[chunk], row - self._start[chunk]
        return self._values[chunk][offsets[index] : offsets[index + 1]]

    def sums(self) -> np.ndarray:
        """Return the sum of every list; no list may be empty."""
        pairs = zip(self._values, self._offsets, strict=True)
        return np.concatenate([np.add.reduceat(values.astype(np.float64), off[:-1]) for values, off in pairs])
