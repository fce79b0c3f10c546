"""Docs that follow from the code: tables of methods, names of settings, links, and the length of lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from workbench.settings import schema, tables
from workbench.settings.derived import allowed_parameters, resolved_parameters
from workbench.settings.loader import load
from workbench.settings.methods import METHODS
from workbench.settings.parameterisations import PARAMETERISATIONS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))
LONGEST = 100


def old_names(text: str) -> list[str]:
    """List the former keys in a text; one that is now a section may be followed by the name of a setting."""
    return [old for old in schema.renamed() if re.search(rf"(?<![\w.]){re.escape(old)}(?!\w|\.\w|\.\*)", text)]


def old_keys(node: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the former keys that a nested experiment sets."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from old_keys(value, (*path, str(key)))
    elif ".".join(path[2:] if path[:1] == ("methods",) else path) in schema.renamed():
        yield ".".join(path)


def prose(text: str) -> Iterator[str]:
    """Yield the lines of a page that are neither code, nor a table, nor an image."""
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if not (fenced or line.startswith(("```", "    ", "|", "!["))):
            yield line


@pytest.mark.parametrize("table", [tables.methods_table, tables.parameterisations_table])
def test_methods_page_has_the_tables_of_the_code(table: Any) -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table() + "\n" in blocks, "python -m workbench.settings.tables"


def test_tables_have_a_row_for_every_name() -> None:
    for table, names in ((tables.methods_table(), METHODS), (tables.parameterisations_table(), PARAMETERISATIONS)):
        header, rule, *rows = table.splitlines()
        assert [row.split("`")[1] for row in rows] == list(names)
        assert {line.replace(r"\|", "").count("|") for line in (header, rule, *rows)} == {header.count("|")}


def test_trainable_parameters_are_those_that_the_rules_accept() -> None:
    for line in tables.methods_table().splitlines()[2:]:
        method, trained = line.split(" | ")[0].strip("| `"), re.findall(r"`(\w+)`", line.split(" | ")[3])
        config = load("quickstart", [f"method={method}", "parameters=auto"]).config
        assert sorted(trained) == sorted(allowed_parameters(config)) and trained[0] == resolved_parameters(config)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_use_new_names_and_short_lines(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert old_names(text) == []
    assert [line for line in prose(text) if len(line) > LONGEST] == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_use_new_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert old_names(text) == [] and list(old_keys(yaml.safe_load(text))) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (path.parent / target).exists()] == []


def test_old_names_are_found() -> None:
    assert old_names("set `objective.norm=mean` and objective.token_ce") == ["objective.token_ce", "objective.norm"]
    assert old_names("`objective.norm.kind=mean`, objective.path.weight, `objective.lookahead.*`") == []
    assert old_names("what `objective.norm` is. Next") == ["objective.norm"]
    nested = {"methods": {"nado": {"objective": {"lookahead": 1.0}}}, "objective": {"norm": {"kind": "mean"}}}
    assert list(old_keys(nested)) == ["methods.nado.objective.lookahead"]
