"""Who said what: settings with the layer that they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments import schema

if TYPE_CHECKING:
    from experiments.loader import Loaded


def said(loaded: Loaded, key: str) -> str:
    """A setting as it was given, and by whom: how every complaint about it begins."""
    return f"{loaded.provenance[key]}: {key}={text(schema.get(loaded.config, key))}"


def text(value: Any) -> str:
    """A value in one line, as a command line would say it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())


def typed(loaded: Loaded, *prefixes: str) -> list[str]:
    """Keys under the prefixes (or equal to them) that the command line sets."""
    typed = [key for key, source in loaded.provenance.items() if source == loaded.layers[-1]]
    return [key for key in typed if any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)]


def weaker(loaded: Loaded, key: str, *others: str) -> bool:
    """Whether a key was set by a weaker layer than one of the others."""
    rank, *ranks = (loaded.layers.index(loaded.provenance[name]) for name in (key, *others))
    return rank < max(ranks)
