"""Output of a comparison: to the terminal, and to files that are replaced atomically."""

from __future__ import annotations

import os
from pathlib import Path

from dinado.errors import ConfigError
from workbench import cli
from workbench.plain_console import PlainConsole
from workbench.report.comparison import Comparison
from workbench.report.export import as_csv, as_json
from workbench.report.terminal import print_comparison


def show(comparison: Comparison, *, quiet: bool) -> None:
    """Print the table; on stderr if ``quiet``, where stdout is reserved for ``--json``."""
    print_comparison(PlainConsole(stderr=quiet, piped_width=200, highlight=False), comparison)


def print_json(comparison: Comparison) -> None:
    """Print the comparison as JSON on the last line of stdout."""
    cli.print_json(as_json(comparison))


def write_csv(comparison: Comparison, file: Path) -> None:
    """Write the table of groups as CSV."""
    replace(file, as_csv(comparison))


def write_page(comparison: Comparison, file: Path, refresh: float | None = None) -> None:
    """Write the HTML page.

    Args:
        refresh: seconds after which the browser reloads the page; None for a page that does not reload.
    """
    from workbench.report.page import render

    replace(file, render(comparison, refresh))


def write_figures(comparison: Comparison, folder: str) -> None:
    """Write every figure as PNG and as SVG.

    Raises:
        ConfigError: the folder cannot be created.
    """
    from workbench.report.figures import draw

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--figures {folder}: {error.strerror}; name a folder to write to") from None
    draw(comparison, Path(folder))


def writable(name: str) -> Path:
    """Return the path of a file to write, checked before any computation.

    Raises:
        ConfigError: the path is a folder, or its parent folder does not exist or is not writable.
    """
    file = Path(name)
    if file.is_dir() or not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise ConfigError(f"cannot write {name}; name a file in a folder that exists")
    return file


def replace(file: Path, text: str) -> None:
    """Replace a file atomically: a reader finds the old content or the new."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
