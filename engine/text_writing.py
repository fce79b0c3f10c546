"""Writing of texts for ``generate.py``: prompts are answered as they come, and records written at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from dinado.durable import file_digest
from dinado.errors import DataError
from engine.decoding_settings import Decoding
from engine.explained_texts import explained
from engine.generation import Generation
from engine.prompt_input import PromptSource
from engine.record_output import RecordWriter
from lightning_modules.callbacks.graceful_stop import interruptible
from workbench.plain_console import PlainConsole
from workbench.run_folder import RunFolder

log = logging.getLogger(__name__)

BATCH = 16
"""Prompts decoded at once."""


@interruptible()
def write_texts(
    folders: Sequence[RunFolder],
    source: PromptSource,
    decoding: Decoding,
    overrides: Sequence[str] = (),
    *,
    output: str | None,
    go_on: bool = False,
    overwrite: bool = False,
    as_text: Callable[[Mapping[str, Any]], str] | None = None,
    each_record: Callable[[dict[str, Any]], None] = lambda record: None,
) -> None:
    """Decode every prompt, and write texts to stdout or JSON lines to ``output`` as they come.

    A record holds the fields of the prompt's row, ``prompt``, and the text: ``text``, or ``response`` where rows have a
    ``text`` of their own, and what :class:`Generation` says about the text.

    Args:
        go_on: continue the file that an earlier command has left; what it holds is compared and kept.
        overwrite: replace the file.
        as_text: what is printed of a record on stdout; None prints its text.
        each_record: called with each record that is written.

    Raises:
        DataError: there is no prompt, one of them is invalid or does not fit the base, or ``output`` cannot be used.
    """
    settings = _settings(folders, decoding) if output else {}
    done = 0
    with RecordWriter(output, settings, go_on=go_on, overwrite=overwrite, as_text=as_text) as writer:
        # A pipe waits for its answer: the model is there before the first prompt.
        generation = Generation(folders, decoding, overrides) if source.live else None
        try:
            with _progress(writer.resumable, source.total) as show:
                while prompts := source.take(BATCH):
                    known = writer.known(prompts, decoding.num)
                    if known < len(prompts) * decoding.num:
                        generation = generation or Generation(folders, decoding, overrides)
                        generation.check(prompts)
                        # The whole batch again: in a smaller one, sums round differently.
                        answers = generation.answers(prompts, done)
                        if decoding.explain:
                            answers = explained(generation, prompts, answers)
                        pairs = [(prompt, one) for prompt, some in zip(prompts, answers, strict=True) for one in some]
                        for prompt, answer in pairs[known:]:
                            assert source.field is not None, "prompts have been read"
                            each_record(writer.write(prompt, source.field, answer.text, answer.more))
                    done += len(prompts)
                    show(done)
            if not done:
                raise DataError("there is no prompt to answer; give --prompt TEXT, --input FILE, or lines on stdin")
            writer.finish(done)
        except DataError as error:
            raise DataError(f"{error}{_kept(writer, output, '; ')}") from None
        except KeyboardInterrupt:
            if hint := _kept(writer, output, ""):
                print(hint, file=sys.stderr)
            raise
    if decoding.exact and decoding.budget and writer.rejected:
        log.warning(
            "%d of %d texts are not accepted%s: none of the %d drawn for each was; raise --budget",
            writer.rejected,
            writer.written,
            " and left empty" if decoding.verify else "",
            decoding.budget // decoding.exact * decoding.exact,
        )


def _settings(folders: Sequence[RunFolder], decoding: Decoding) -> dict[str, Any]:
    """Return what decides the texts: a file that was begun with other settings is not continued."""
    given = {f"--{name.replace('_', '-')}": value for name, value in asdict(decoding).items()}
    files = [folder.trained for folder in folders]
    weights = [file_digest(file)[:16] if file.is_file() else None for file in files]
    return {"runs": [folder.run_id for folder in folders], "weights": weights, **given}


def _kept(writer: RecordWriter, output: str | None, before: str) -> str:
    """Say that a file keeps what was written; empty where nothing was."""
    if not writer.written or not writer.resumable:
        return ""
    return f"{before}{output} keeps the {writer.written} texts written so far; the same command with --continue goes on"


@contextmanager
def _progress(to_file: bool, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal while a file is written; yield a function that takes the prompts done."""
    if not to_file or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=PlainConsole(stderr=True)) as bar:
        task = bar.add_task("prompts", total=total)
        yield lambda done: bar.update(task, completed=done)
