"""Terminal output of a run: the console, logging, and silenced warnings of libraries."""

from __future__ import annotations

import logging
import os
import warnings

from rich.logging import RichHandler

from dinado.ranks import is_writer
from workbench.plain_console import PlainConsole


def run_console(quiet: bool) -> PlainConsole:
    """Return the console of rank 0 and set up logging on it; other ranks stay silent.

    Args:
        quiet: write to stderr, because stdout is reserved for ``--json``.
    """
    console = PlainConsole(stderr=quiet, piped_width=160)
    level = logging.INFO if is_writer() else logging.ERROR
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)], force=True
    )
    for noisy in ("httpx", "transformers", "lightning.pytorch", "lightning.fabric", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # peft corrects this for GPT-2's Conv1D by itself and warns every time.
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
    # The frozen base is meant to be in eval mode while the rest trains.
    warnings.filterwarnings("ignore", message=".*eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # The project gathers held-out numbers over ranks itself; `sync_dist` would average numbers that are global already.
    warnings.filterwarnings("ignore", message=".*It is recommended to use .self.log.*sync_dist.*")
    console.quiet = not is_writer()
    return console
