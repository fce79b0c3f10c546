"""Every setting by its dotted key: type, default and metadata, collected from the configuration's dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from workbench.settings.config import Config
from workbench.settings.fields import About, Role, Unread


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One setting.

    Attributes:
        key: dotted path.
        hint: type annotation.
        default: value where nothing is set.
        about: metadata; see :class:`~workbench.settings.fields.About`.
        sections: metadata of the sections that it stands in, the innermost first.
    """

    key: str
    hint: Any
    default: Any
    about: About
    sections: tuple[About, ...] = ()

    @property
    def section(self) -> str:
        """The dotted path of its section, empty at the top level."""
        return self.key.rpartition(".")[0]

    @property
    def help(self) -> str:
        """The help text, which begins with the choices that it belongs to."""
        owners = ", ".join(self.about.belongs_to)
        return f"{owners}: {self.about.help[0].lower()}{self.about.help[1:]}" if owners else self.about.help

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words, empty for any other type."""
        return self.about.choices or (get_args(self.hint) if get_origin(self.hint) is Literal else ())

    @property
    def type_name(self) -> str:
        """The type as help and errors show it: ``float``, ``int | null``, ``linf | mean``."""
        return " | ".join(self.about.choices) or _type_name(self.hint)

    @property
    def role(self) -> Role:
        """The role of the setting, its own or that of its section."""
        return next((about.role for about in (self.about, *self.sections) if about.role), "outcome")

    @property
    def agree(self) -> str:
        """The aspect that compared runs must share; empty where they may differ."""
        return next((about.agree for about in (self.about, *self.sections) if about.agree is not None), "")

    @property
    def unread(self) -> tuple[Unread, ...]:
        """Conditions under which it has no effect, those of its sections first."""
        return tuple(about.unread for about in (*reversed(self.sections), self.about) if about.unread is not None)


@cache
def leaves() -> dict[str, Leaf]:
    """Return all settings by key, in the order of the schema."""
    return {leaf.key: leaf for leaf in _walk(Config, "", ())}


@cache
def sections() -> dict[str, str]:
    """Return all sections by dotted path, with the first line of their docstring; outer ones before inner ones."""
    return dict(_sections(Config, ""))


@cache
def renamed() -> dict[str, str]:
    """Return the keys of earlier versions, with the keys that took their place."""
    return {leaf.about.was: leaf.key for leaf in leaves().values() if leaf.about.was}


def get(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def put(config: Config, key: str, value: Any) -> None:
    """Set a dotted key."""
    section, _, name = key.rpartition(".")
    setattr(get(config, section) if section else config, name, value)


def departures(config: Config) -> dict[str, Any]:
    """Return the settings that differ from their defaults, each by the first name it had.

    What is derived from them, such as the name of a trial, then changes neither with a new setting nor with a new name.
    """
    found = {leaf.about.was or key: (get(config, key), leaf.default) for key, leaf in leaves().items()}
    return {key: value for key, (value, default) in found.items() if value != default}


def nearest(key: str, extra: tuple[str, ...] = ()) -> str:
    """Return ``; did you mean ...?`` for a key that does not exist, empty when nothing is near.

    The same name in another section comes first, then keys that look alike as a whole, then names that do.
    """
    known = [*leaves(), *extra]
    name = key.rpartition(".")[2]
    same_name = [other for other in known if other.rpartition(".")[2] == name]
    alike = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    names = difflib.get_close_matches(name, {other.rpartition(".")[2] for other in known}, n=1, cutoff=0.6)
    found = (
        [other for other in same_name if other in alike]
        or same_name
        or alike
        or [other for other in known if other.rpartition(".")[2] in names]
        or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    )
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _walk(cls: type, prefix: str, outer: tuple[About, ...]) -> Iterator[Leaf]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, kind, about = f"{prefix}{field.name}", _section_class(field), field.metadata["about"]
        if kind is not None:
            yield from _walk(kind, f"{key}.", (about, *outer))
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield Leaf(key, hints[field.name], default, about, outer)


def _sections(cls: type, prefix: str) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(cls):
        if (kind := _section_class(field)) is not None:
            yield f"{prefix}{field.name}", (kind.__doc__ or "").strip().partition("\n")[0]
            yield from _sections(kind, f"{prefix}{field.name}.")


def _section_class(field: dataclasses.Field[Any]) -> type | None:
    """Return the dataclass of a section, None for a setting."""
    factory = field.default_factory
    return factory if isinstance(factory, type) and dataclasses.is_dataclass(factory) else None


def _type_name(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(map(_type_name, get_args(hint)))
    return hint.__name__ if get_origin(hint) is None else str(hint)
