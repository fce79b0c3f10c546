"""Standard streams that accept every character, whatever the locale."""

from __future__ import annotations

import os
import sys
from typing import Any


def accept_every_character() -> None:
    """Make stdin, stdout and stderr usable whatever the locale and whichever of them is closed.

    A character that the encoding of the stream lacks is replaced, because an error would end a run whose result is
    being shown. A closed stream reads as empty and writes nowhere.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def is_unicode(stream: Any) -> bool:
    """Tell whether a stream can encode every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
