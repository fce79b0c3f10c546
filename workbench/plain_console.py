"""Consoles that show text as it is."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console


class PlainConsole(Console):
    """A Rich console without markup and emoji codes: prompts, texts and paths may hold square brackets and colons.

    Args:
        stderr: write to stderr, because stdout is reserved for ``--json``.
        piped_width: columns where the stream is no terminal; a pipe or a log file has no width of its own.
        settings: further arguments of :class:`rich.console.Console`.
    """

    def __init__(self, *, stderr: bool = False, piped_width: int | None = None, **settings: Any) -> None:
        stream = sys.stderr if stderr else sys.stdout
        width = None if stream is None or stream.isatty() else piped_width
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, **settings)

    def on_broken_pipe(self) -> None:
        """Stop printing when the reader of the pipe has closed it; the run continues."""
        self.quiet = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self.file.fileno())
