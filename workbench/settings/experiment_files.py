"""YAML files of experiments: location, inheritance by ``extends``, reading of scalars as text."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from dinado.errors import ConfigError
from workbench.settings import schema

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def locate(name: str, beside: Path | None = None) -> Path:
    """Return the file of an experiment; a bare name is searched beside the file that names it, then in experiments/."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not (path := (beside or Path()) / name).is_file():
            raise ConfigError(f"no experiment file {one_line(path)}")
        return path
    for folder in [beside, EXPERIMENTS] if beside else [EXPERIMENTS]:
        if (path := folder / f"{name}.yaml").is_file():
            return path
    known = [path.stem for path in sorted(EXPERIMENTS.glob("*.yaml"))]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    raise ConfigError(f"no experiment {one_line(name)!r}; {hint}")


def lineage(path: Path, below: tuple[Path, ...] = ()) -> dict[Path, dict[str, Any]]:
    """Return the file and all that it extends, weakest first; a parent reached twice counts at its first place."""
    path = path.resolve()
    if path in below:
        raise ConfigError(f"{label_of(path)}: extends loops: {' -> '.join(item.stem for item in (*below, path))}")
    body = read(path)
    parents = body.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{label_of(path)}: extends takes a name or a list of names")
    found: dict[Path, dict[str, Any]] = {}
    for parent in parents:
        try:
            file = locate(parent, beside=path.parent)
        except ConfigError as error:
            raise ConfigError(f"{label_of(path)}: extends={parent}: {error}") from None
        found |= lineage(file, (*below, path))
    return found | {path: body}


def label_of(path: Path) -> str:
    """Return the label of a file in errors and provenance: its name in experiments/, else its path."""
    path = path.resolve()
    if path.parent == EXPERIMENTS:
        return path.name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read(path: Path) -> dict[str, Any]:
    try:
        body = yaml.load(path.read_text(encoding="utf-8"), Loader=TextLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{label_of(path)}: {reason(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{label_of(path)}: cannot be read: {one_line(error)}") from None
    if body is not None and not isinstance(body, dict):
        raise ConfigError(f"{label_of(path)}: expected `key: value` lines, found a {type(body).__name__}")
    return body or {}


def flatten(body: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten nested mappings to dotted keys; an empty section sets nothing."""
    found: list[tuple[str, Any]] = []
    for name, value in body.items():
        key = f"{prefix}{name}".replace("-", "_")
        if isinstance(value, dict) and value and key not in schema.leaves():
            found += flatten(value, f"{key}.")
        elif key not in schema.sections() or value not in (None, {}):
            found.append((key, value))
    return found


def one_line(value: Any) -> str:
    return " ".join(str(value).split())


def reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + one_line(getattr(error, "problem", None) or error)


class TextLoader(yaml.SafeLoader):
    """A YAML loader that leaves scalars as text, except null, and refuses a duplicate key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} occurs twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


TextLoader.yaml_implicit_resolvers = {}
TextLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("~|null|Null|NULL|None|$"), ["~", "n", "N", ""])
