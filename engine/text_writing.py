"""Writing of texts for ``generate.py``: prompts are answered batch by batch, and records written as they come."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinado.prompt import Prompt
from engine.decoding_settings import Decoding
from engine.generation import Generation
from engine.prompt_input import free_field
from engine.record_output import RecordWriter, check_output

log = logging.getLogger(__name__)

BATCH = 16
"""Prompts decoded at once."""


def write_texts(
    run: Path, prompts: list[Prompt], decoding: Decoding, overrides: Sequence[str] = (), *, output: str | None
) -> list[dict[str, Any]]:
    """Decode every prompt, write texts to stdout or JSON lines to ``output``, return the records.

    A record holds the fields of the prompt's row, ``prompt``, and the text: ``text``, or ``response`` where rows have a
    ``text`` of their own. Of a text that was chosen among several it also holds what :func:`choose` says.

    Raises:
        DataError: ``output`` is not a file in an existing folder, or a prompt does not fit the base.
    """
    check_output(output)
    field = free_field(prompts)
    generation = Generation(run, decoding, overrides)
    generation.check(prompts)
    with RecordWriter(output, field) as writer:
        for start in range(0, len(prompts), BATCH):
            some = prompts[start : start + BATCH]
            for prompt, answers in zip(some, generation.answers(some, start), strict=True):
                for answer in answers:
                    writer.write(prompt, answer.text, answer.more)
    records = writer.records
    if (choice := decoding.choice) and (rejected := sum(not record["accepted"] for record in records)):
        log.warning(
            "%d of %d texts are not accepted%s: none of the %d drawn for each was; raise --budget",
            rejected,
            len(records),
            " and left empty" if decoding.verify else "",
            choice[1] // choice[0] * choice[0],
        )
    return records
