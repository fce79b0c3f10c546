"""Lines of a pipe, a terminal or a file, read as they come."""

from __future__ import annotations

import os
import select
from collections import deque
from typing import TextIO

_CHUNK = 1 << 16


class LineStream:
    """Lines of a file descriptor, of which a reader can ask whether the next one is there already.

    Only whole lines count: half a line whose rest is still to come is not ready. The descriptor is read without a
    buffer of Python's, which would hide what has come from ``select``.

    Args:
        descriptor: a readable file descriptor, closed at its end; None for ``content`` alone.
        content: bytes before those of the descriptor.
    """

    def __init__(self, descriptor: int | None, content: bytes = b"") -> None:
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._add(content)
        if descriptor is None:
            self._end()

    @classmethod
    def of_text(cls, stream: TextIO) -> LineStream:
        """Return the lines of a text stream; one without a descriptor is read at once."""
        try:
            return cls(os.dup(stream.fileno()))
        except OSError:  # io.UnsupportedOperation, or a closed descriptor
            return cls(None, stream.read().encode("utf-8", "surrogateescape"))

    def ready(self) -> bool:
        """Tell whether the next line, or the end, can be read without waiting."""
        while not self._lines and self._descriptor is not None:
            if not select.select([self._descriptor], [], [], 0)[0]:
                return False
            self._read()
        return True

    def next_line(self) -> bytes | None:
        """Wait for the next line and return it without its line feed; None at the end."""
        while not self._lines and self._descriptor is not None:
            self._read()
        return self._lines.popleft() if self._lines else None

    def _read(self) -> None:
        assert self._descriptor is not None, "there is something to read"
        if chunk := os.read(self._descriptor, _CHUNK):
            self._add(chunk)
        else:
            os.close(self._descriptor)
            self._descriptor = None
            self._end()

    def _add(self, chunk: bytes) -> None:
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        self._lines.extend(whole)

    def _end(self) -> None:
        if self._rest:
            self._lines.append(self._rest)
            self._rest = b""
