"""Tables of docs/methods.md, made from the tables of methods and parameterisations without importing torch.

``python -m workbench.settings.tables`` prints them; with the path of the page, it puts them in their places there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from workbench.settings.methods import METHODS, Method
from workbench.settings.parameterisations import PARAMETERISATIONS


def methods_table() -> str:
    """Return the Markdown table of the methods: how a score becomes log R, what each can train, its source."""
    rows = [
        (f"`{row.name}`", row.summary, row.log_r, ", ".join(f"`{name}`" for name in _trainable(row)), row.source)
        for row in METHODS.values()
    ]
    return _markdown(("`method`", "what it learns", "`log R_i(v)`", "`parameters`, its default first", "source"), rows)


def parameterisations_table() -> str:
    """Return the Markdown table of the parameterisations: what is trained, and what its score is."""
    rows = [(f"`{row.name}`", row.summary, row.score) for row in PARAMETERISATIONS.values()]
    return _markdown(("`parameters`", "what is trained", "score"), rows)


def updated(text: str) -> str:
    """Return a page with every table that has the header of one of ours replaced."""
    for table in (parameterisations_table(), methods_table()):
        header = re.escape(table.partition("\n")[0])
        text = re.sub(rf"^{header}\n(?:\|.*\n)*", lambda _, table=table: f"{table}\n", text, flags=re.MULTILINE)  # type: ignore[misc]
    return text


def _trainable(method: Method) -> list[str]:
    """List the parameterisations of a method on a base with weights to adapt, the one that `auto` takes first."""
    names = [row.name for row in PARAMETERISATIONS.values() if (method.policy if row.policy else method.network)]
    return sorted(names, key=lambda name: name != method.default)


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table that ends without a newline; ``|`` inside a cell is escaped."""
    lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in (header, *rows)]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join("---" for _ in header), *lines[1:]))


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")
    if not sys.argv[1:]:
        print(parameterisations_table(), methods_table(), sep="\n\n")
