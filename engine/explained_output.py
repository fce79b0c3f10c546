"""Explained texts for a reader: blocks on stdout as they come, and a page when all are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.decoding_settings import Decoding
from workbench.plain_console import PlainConsole
from workbench.report.explained_view import LEGEND, print_explained
from workbench.report.output import replace
from workbench.run_folder import RunFolder
from workbench.settings.config import Config
from workbench.settings.derived import method_of, needs_root
from workbench.settings.loader import from_run_folder


class ExplainedOutput:
    """A view of the explained texts of a run.

    Args:
        page: the HTML file to write at the end; None for none.
    """

    def __init__(self, folder: RunFolder, decoding: Decoding, page: Path | None) -> None:
        config = from_run_folder(folder.path).config
        self.note = about_r(config, decoding.exact is not None)
        self._title = f"{config.method}, run {folder.run_id}"
        self._page = page
        self._records: list[Mapping[str, Any]] = []
        self._begun = False

    def as_text(self, record: Mapping[str, Any]) -> str:
        """Return a record as a block for the terminal; the first one begins with a legend."""
        console = PlainConsole(piped_width=160, highlight=False)
        with console.capture() as captured:
            if not self._begun:
                console.print(f"{LEGEND} {self.note}\n")
            print_explained(console, record["prompt"], record["explained"])
        self._begun = True
        return "\n".join(line.rstrip() for line in captured.get().split("\n"))

    def keep(self, record: Mapping[str, Any]) -> None:
        """Take a record for the page."""
        if self._page is not None:
            self._records.append(record)

    def write_page(self) -> None:
        """Write the page, if one was asked for."""
        if self._page is not None:
            from workbench.report.explained_page import render_explained

            replace(self._page, render_explained(self._title, self.note, self._records))


def about_r(config: Config, exact: bool) -> str:
    """Say in a sentence what is shown of R."""
    method = method_of(config)
    if not method.predicts_r:
        return f"{config.method} predicts no R."
    if not needs_root(config):
        return "R is predicted: the chance that the base, going on from there, writes a text that the oracle accepts."
    if exact:
        return "R is predicted from R(c), which this run takes from rollouts and which Z of --exact estimates here."
    if method.telescopes:
        return "R/R(c) is predicted; this run takes R(c) from rollouts, and --exact K estimates it for a new prompt."
    return "R is not shown: this run takes R(c) from rollouts, and --exact K estimates it for a new prompt."
