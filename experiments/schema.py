"""What the schema says about itself: every setting with its key, type, default and help text.

The help of a field is the string under it in ``experiments/config.py``, read from the source with ``ast``.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
import types
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from experiments import config as schema_module
from experiments.config import Config


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One setting. ``key`` is its dotted path, ``section`` is empty at the top level."""

    key: str
    hint: Any
    default: Any
    help: str

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a Literal, empty for any other type."""
        return get_args(self.hint) if get_origin(self.hint) is Literal else ()

    @property
    def type_name(self) -> str:
        """The type as help and errors show it: ``float``, ``int | null``, ``linf | mean``."""
        return _type_name(self.hint)

    def owners(self, choices: tuple[str, ...]) -> tuple[str, ...]:
        """Which of ``choices`` the help text assigns the field to, as in ``jsonl: ... commongen: ...``."""
        named = re.findall(r"(?:^|(?<=[.;] ))(\w+(?:, \w+)*): ", self.help)
        owners = [owner for group in named for owner in group.split(", ")]
        return tuple(owners) if set(owners) <= set(choices) else ()


@cache
def leaves() -> dict[str, Leaf]:
    """All settings by key, in the order of the schema."""
    return {leaf.key: leaf for leaf in _walk(Config, "")}


@cache
def sections() -> dict[str, str]:
    """Sections with the first line of their docstring."""
    return {
        field.name: (hint.__doc__ or "").strip().partition("\n")[0]
        for field in dataclasses.fields(Config)
        if dataclasses.is_dataclass(hint := get_type_hints(Config)[field.name])
    }


def get(config: Config, key: str) -> Any:
    """Value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def put(config: Config, key: str, value: Any) -> None:
    """Set a dotted key."""
    section, _, name = key.rpartition(".")
    setattr(get(config, section) if section else config, name, value)


def nearest(key: str, extra: tuple[str, ...] = ()) -> str:
    """``; did you mean ...?`` for a key that does not exist, empty when nothing is near.

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


def _walk(cls: type, prefix: str) -> list[Leaf]:
    hints = get_type_hints(cls)
    found: list[Leaf] = []
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found += _walk(hint, f"{key}.")
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        found.append(Leaf(key, hint, default, _docs().get((cls.__name__, field.name), "")))
    return found


@cache
def _docs() -> dict[tuple[str, str], str]:
    """Attribute docstrings by (class, field)."""
    tree = ast.parse(Path(str(schema_module.__file__)).read_text(encoding="utf-8"))
    docs = {}
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, text in zip(cls.body, cls.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[cls.name, ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return docs


def _type_name(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(map(_type_name, get_args(hint)))
    return hint.__name__ if get_origin(hint) is None else str(hint)
