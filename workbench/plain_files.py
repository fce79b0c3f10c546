"""Text files and lines of JSON that other programs can read at any moment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def json_line(record: Mapping[str, Any], ascii_only: bool = False) -> str:
    """Format one line of strict JSON: NaN and infinities become null, tensors and arrays become plain numbers.

    Args:
        ascii_only: escape all other characters.
    """
    text = json.dumps(_plain(record), allow_nan=False, ensure_ascii=ascii_only)
    # Half of a surrogate pair has no encoding; its escape is the same string in JSON.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # a tensor or an array, without importing its library
        return _plain(value.tolist())
    return str(value)


def write_text(file: Path, text: str) -> None:
    """Replace a file atomically: a reader finds the old content or the new. Half a surrogate pair is escaped."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    part.replace(file)
