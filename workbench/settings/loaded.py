"""A configuration with the origin of each of its values, and the form of a value in error messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.settings import schema
from workbench.settings.config import Config


@dataclass
class Loaded:
    """A configuration and the origin of each of its values.

    Attributes:
        config: the resolved settings.
        provenance: for each dotted key ``default``, a file, or ``command line``.
        experiment: name of the experiment.
        layers: all sources of values, weakest first.
    """

    config: Config
    provenance: dict[str, str]
    experiment: str
    layers: tuple[str, ...]


def said(loaded: Loaded, key: str) -> str:
    """Return a setting with its origin and value: the beginning of every error about it."""
    return f"{loaded.provenance[key]}: {key}={text(schema.get(loaded.config, key))}"


def text(value: Any) -> str:
    """Return a value in one line, in the form of the command line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())


def typed(loaded: Loaded, *prefixes: str) -> list[str]:
    """List the keys under the prefixes (or equal to them) that the command line sets."""
    found = [key for key, source in loaded.provenance.items() if source == loaded.layers[-1]]
    return [key for key in found if any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)]


def weaker(loaded: Loaded, key: str, *others: str) -> bool:
    """Tell whether a key was set by a weaker layer than one of the others."""
    rank, *ranks = (loaded.layers.index(loaded.provenance[name]) for name in (key, *others))
    return rank < max(ranks)
