"""Import what a table names as text, so that the table itself loads nothing."""

from __future__ import annotations

import importlib
from typing import Any


def imported(path: str) -> Any:
    """Return what ``module:name`` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
