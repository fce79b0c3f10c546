"""What a run says on the terminal, and what it silences."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from rich.console import Console
from rich.logging import RichHandler

from dinado.ranks import is_writer


def run_console(quiet: bool) -> Console:
    """Return the console of rank 0, with logging on it; other ranks stay silent.

    Args:
        quiet: write to stderr, as stdout belongs to ``--json``.
    """
    # A pipe or a log file has no width of its own; the table needs some.
    console = Console(stderr=quiet, width=None if sys.stdout.isatty() else 160)
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
    # peft sees GPT-2's Conv1D, does the right thing, and says so every time.
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
    # The frozen base is meant to be in eval mode while the rest trains.
    warnings.filterwarnings("ignore", message=".*eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # Held-out numbers are gathered over processes by ourselves; `sync_dist` would average what is already global.
    warnings.filterwarnings("ignore", message=".*It is recommended to use .self.log.*sync_dist.*")
    console.quiet = not is_writer()
    return console
