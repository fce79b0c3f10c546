"""The pages on the library run as they are printed, and the package's names are where they say."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import dinado

PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("library.md", "controlled_model.md")}
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
ROUNDING = 0.03
"""How far a printed number may be off: matrix products round differently on other machines."""


@pytest.mark.parametrize("name", PAGES)
def test_the_page_runs_in_order_and_prints_what_it_shows(name: str) -> None:
    blocks, namespace = BLOCK.findall(PAGES[name]), {"__name__": "page"}
    assert len(blocks) == PAGES[name].count("```python") >= 4
    for code, shown in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, f"docs/{name}", "exec"), namespace)
        assert shown, "every block shows what it prints"
        assert NUMBER.sub("#", out.getvalue()) == NUMBER.sub("#", shown), f"printed:\n{out.getvalue()}"
        found, wanted = ([float(word) for word in NUMBER.findall(text)] for text in (out.getvalue(), shown))
        assert found == pytest.approx(wanted, rel=ROUNDING, abs=ROUNDING), f"printed:\n{out.getvalue()}"


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_narrow(name: str) -> None:
    assert [line for line in PAGES[name].splitlines() if len(line) > 100] == []


def test_every_name_is_what_type_checkers_see() -> None:
    """The imports for type checkers and the table of files are the same names from the same files."""
    tree = ast.parse((ROOT / "dinado" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    for_checkers = [
        (node.module, alias.name, alias.asname)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert all(name == asname for _, name, asname in for_checkers)
    files = [(f"dinado.{file}", name) for file, names in dinado._FILES.items() for name in names]
    assert sorted((module, name) for module, name, _ in for_checkers) == sorted(files)
    for module, name in files:
        value = getattr(dinado, name)
        assert value.__module__ == module and value.__doc__ and name in dir(dinado)


def test_the_package_itself_loads_nothing() -> None:
    code = "import sys, dinado, dinado.errors; print('torch' in sys.modules, dinado.UserError.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "UserError"]
    with pytest.raises(AttributeError, match="no attribute 'Lorra'"):
        _ = dinado.Lorra  # type: ignore[attr-defined]
