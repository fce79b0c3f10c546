"""Texts of ``--help``, the list of experiments and ``--print-config``."""

from __future__ import annotations

import difflib
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from dinado.errors import ConfigError
from workbench.settings import schema
from workbench.settings.loaded import Loaded
from workbench.settings.methods import METHODS
from workbench.settings.oracles import ORACLES
from workbench.settings.parameterisations import PARAMETERISATIONS
from workbench.settings.tasks import TASKS

TOP_LEVEL = "experiment"
_TABLES: dict[str, Any] = {
    "method": METHODS,
    "parameters": PARAMETERISATIONS,
    "task.name": TASKS,
    "oracle.name": ORACLES,
}


def page(usage: str, options: Sequence[tuple[str, str]], section: str | None = None, settings: bool = True) -> str:
    """Return the text of ``--help [section]``.

    Args:
        usage: purpose of the script and examples of calls.
        options: each ``--option`` with its help text.
        section: a section, a single key, or None for everything.
        settings: whether the script takes ``key=value`` settings at all.

    Raises:
        ConfigError: there is no such section.
    """
    if section is not None and settings:
        return _section(section.replace("-", "_"))
    blocks = [usage.strip(), _table("options", options)]
    if settings:
        blocks += [_block(name) for name in (TOP_LEVEL, *schema.sections())]
    return "\n\n".join(filter(None, blocks))


def listing() -> str:
    """List the experiments that ship with the project, one per line."""
    from workbench.settings.loader import experiments

    return _table("experiments", list(experiments().items()))


def print_config(loaded: Loaded) -> None:
    """Print the resolved configuration as YAML, with the source of every value as a comment."""
    from workbench.settings.loader import to_yaml

    print(to_yaml(loaded, dim=sys.stdout.isatty()), end="")


def _section(name: str) -> str:
    if name in schema.leaves():
        described = {kind: row.summary for kind, row in _TABLES.get(name, {}).items()}
        return "\n".join(filter(None, (_table("", [_row(schema.leaves()[name])]), _table("", list(described.items())))))
    if name in schema.renamed():
        raise ConfigError(f"--help {name}: this setting is now called {schema.renamed()[name]}")
    known = {TOP_LEVEL: "One experiment.", **schema.sections()}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        is_name = any(key.rpartition(".")[2] == name for key in schema.leaves())
        near = f"; did you mean {close[0]}?" if close and not is_name else schema.nearest(name)
        raise ConfigError(f"--help {name}: no such section{near or '; there are ' + ', '.join(known)}")
    return "\n\n".join(_block(other) for other in known if other == name or other.startswith(f"{name}."))


def _block(name: str) -> str:
    """Return the settings of a section, without those of the sections inside it."""
    rows = [_row(leaf) for leaf in schema.leaves().values() if (leaf.section or TOP_LEVEL) == name]
    return _table(f"{name}: {schema.sections().get(name, 'One experiment.')}", rows)


def _row(leaf: schema.Leaf) -> tuple[str, str]:
    default = (
        "null" if leaf.default is None else str(leaf.default).lower() if leaf.type_name == "bool" else leaf.default
    )
    return (
        leaf.key,
        f"{leaf.help} [{leaf.type_name}; {default!s}]" if default != "" else f"{leaf.help} [{leaf.type_name}]",
    )


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Format rows of name and text, the text aligned and wrapped to the width of the terminal."""
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    column = max((len(name) for name, _ in rows), default=0) + 4
    bold = "\x1b[1m{}\x1b[0m" if sys.stdout.isatty() else "{}"
    lines = [bold.format(line) for line in textwrap.wrap(title, width)]
    for name, text in rows:
        wrapped = textwrap.wrap(text, width - column, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"  {name:<{column - 2}}{wrapped[0]}".rstrip(), *(" " * column + line for line in wrapped[1:])]
    return "\n".join(lines)
