"""Import what a table names as text, so that the table itself loads nothing."""

from __future__ import annotations

import importlib
from typing import Any

from dinado.errors import ConfigError


def imported(path: str) -> Any:
    """Return what ``module:name`` names.

    Raises:
        ConfigError: there is no such module, or nothing of that name in it.
    """
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that an existing file asks for in vain is another matter, and keeps its traceback.
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"{path} stands in a table, and there is no module {error.name}") from None
    if not hasattr(found, name):
        raise ConfigError(f"{path} stands in a table, and there is no {name} in {found.__file__}")
    return getattr(found, name)
