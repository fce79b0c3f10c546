"""The files of a user's own code: those that a module imports, directly or through other files of the user.

Installed packages, the standard library and this project are left out, so that upgrades keep old verdicts.
"""

from __future__ import annotations

import ast
import site
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_OURS = ("benchmarks", "datamodules", "dinado", "engine", "lightning_modules", "workbench")


def imported_files(module_name: str) -> list[tuple[str, bytes]]:
    """Return name and content of every file of the user that a module imports, sorted, without the module itself.

    Import statements are read from the source, those inside functions included; modules whose names are computed at
    run time are not found.
    """
    found: dict[str, bytes] = {}
    start = _file_of(module_name)
    waiting = [] if start is None else [(module_name, start)]
    while waiting:
        name, file = waiting.pop()
        try:
            content = file.read_bytes()
        except OSError:
            continue
        found[name] = content
        if file.suffix == ".py":
            is_package = file.name == "__init__.py"
            waiting += [
                (target, path)
                for imported in _imports(content, name if is_package else name.rpartition(".")[0])
                for target, path in _on_the_way(imported)
                if target not in found
            ]
    found.pop(module_name, None)
    return sorted(found.items())


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Yield the full names in all import statements; a name after ``from x import`` may be a module or not."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _on_the_way(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the user's files that an import runs: those of the packages around a module, and its own."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        target = ".".join(parts[:end])
        file = _file_of(target)
        if file is not None and _is_users(target, file):
            yield target, file


def _file_of(name: str) -> Path | None:
    spec = getattr(sys.modules.get(name), "__spec__", None) or _find(name)
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None


def _find(name: str) -> ModuleSpec | None:
    """Find a module without importing the packages around it."""
    parts, where, spec = name.split("."), None, None
    for end in range(1, len(parts) + 1):
        spec = None
        with suppress(Exception):
            spec = PathFinder.find_spec(".".join(parts[:end]), where)
        if spec is None or (end < len(parts) and spec.submodule_search_locations is None):
            return None
        where = list(spec.submodule_search_locations or ())
    return spec


def _is_users(name: str, file: Path) -> bool:
    top, path = name.partition(".")[0], file.resolve()
    if top in sys.stdlib_module_names or any(path.is_relative_to(folder) for folder in _installed()):
        return False
    return not any(path.is_relative_to(_ROOT / folder) for folder in _OURS)


def _installed() -> set[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {sysconfig.get_path(name) for name in names} | {*site.getsitepackages(), site.getusersitepackages()}
    return {Path(folder).resolve() for folder in folders if folder}
