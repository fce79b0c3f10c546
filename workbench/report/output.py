"""Where a comparison goes: the terminal, and files that are replaced in one step."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console

from dinado.errors import ConfigError
from workbench import cli
from workbench.report.comparison import Comparison
from workbench.report.export import as_csv, as_json
from workbench.report.terminal import print_comparison


def show(comparison: Comparison, *, quiet: bool) -> None:
    """Print the table; on stderr where stdout belongs to ``--json``."""
    stream = sys.stderr if quiet else sys.stdout
    # A pipe or a log file has no width of its own; the table needs some.
    console = Console(stderr=quiet, width=None if stream.isatty() else 200, highlight=False)
    print_comparison(console, comparison)


def print_json(comparison: Comparison) -> None:
    """The comparison as the last line of stdout."""
    cli.print_json(as_json(comparison))


def write_csv(comparison: Comparison, file: Path) -> None:
    """Write the table of groups."""
    replace(file, as_csv(comparison))


def write_page(comparison: Comparison, file: Path, refresh: float | None = None) -> None:
    """Write the page.

    Args:
        refresh: seconds after which it reads itself again; None for a page that stays.
    """
    from workbench.report.page import render

    replace(file, render(comparison, refresh))


def write_figures(comparison: Comparison, folder: str) -> None:
    """Write every figure twice.

    Raises:
        ConfigError: the folder cannot be made.
    """
    from workbench.report.figures import draw

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--figures {folder}: {error.strerror}; name a folder to write to") from None
    draw(comparison, Path(folder))


def writable(name: str) -> Path:
    """A file to write, checked before anything is computed for it.

    Raises:
        ConfigError: it is a folder, or its folder does not exist or takes no files.
    """
    file = Path(name)
    if file.is_dir() or not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise ConfigError(f"cannot write {name}; name a file in a folder that exists")
    return file


def replace(file: Path, text: str) -> None:
    """Write a file so that a reader finds the old content or the new."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
