"""Decoding of prompts from the command line, a file or stdin with trained runs, for ``generate.py``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from datamodules.tasks.conversations import MESSAGES, request_of, row_of
from datamodules.tasks.json_rows import read_rows
from dinado.bases.decoder import Decoder
from dinado.bases.prompt_checks import check_prompts
from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.resampling import resample
from dinado.errors import DataError
from dinado.oracles import Oracle
from dinado.prompt import Prompt
from dinado.rollouts.sampler import sample, uniforms
from engine.composing import restore_controlled

log = logging.getLogger(__name__)

BATCH = 16
"""Prompts decoded at once."""


def read_prompts(text: str | None, file: str | None) -> list[Prompt]:
    """Read prompts from the command line, a JSON-lines file, or stdin (one per line).

    Raises:
        DataError: there is no prompt, two sources were given, or the file or a line of it is invalid.
    """
    if text is not None and file is not None:
        raise DataError("give --prompt or --input, not both")
    if text is not None:
        _check_utf8("--prompt", text)
        prompts = [Prompt("0", text)]
    elif file is not None:
        prompts = list(_from_jsonl(Path(file)))
    else:
        lines = _lines_of_stdin()
        for number, line in enumerate(lines, 1):
            _check_utf8(f"stdin, line {number}", line)
        prompts = [Prompt(str(i), line.strip()) for i, line in enumerate(lines) if line.strip()]
    if not prompts:
        raise DataError("there is no prompt to answer; give --prompt TEXT, --input FILE, or lines on stdin")
    return prompts


@torch.no_grad()
def write_texts(
    runs: Sequence[str | Path],
    prompts: list[Prompt],
    overrides: Sequence[str] = (),
    *,
    output: str | None,
    mode: str,
    num: int,
    beams: int,
    alphas: Sequence[float] | None,
    max_new_tokens: int | None,
    seed: int,
    choice: tuple[int, int] | None = None,
    verify: bool = False,
) -> list[dict[str, Any]]:
    """Decode every prompt ``num`` times, write texts to stdout or JSON lines to ``output``, return the records.

    A record holds the fields of the prompt's row, ``prompt``, and the text: ``text``, or ``response`` where rows have a
    ``text`` of their own. Of a text that was chosen among several it also holds whether it is accepted, how many texts
    and tokens were drawn for it, their effective number, and log Z.

    Args:
        runs: the run to decode with, or several that decode together.
        alphas: the strength of each run, or one for all; None takes each run's own.
        choice: K texts to choose each one among, and the most to draw; None writes texts as they come.
        verify: leave a chosen text that the oracle rejects empty.

    Raises:
        DataError: ``output`` is not a file in an existing folder, or a prompt does not fit the base.
    """
    if output and (Path(output).is_dir() or not Path(output).absolute().parent.is_dir()):
        raise DataError(f"--output {output}: name a file in a folder that exists")
    field = _free_field(prompts)
    restored = restore_controlled(runs, overrides, alphas)
    model, truncated = restored.model, restored.truncated
    budget = max_new_tokens or restored.max_new_tokens
    check_prompts(model.base, prompts, budget, "--max-new-tokens")
    oracle = None if choice is None else restored.oracle()
    if oracle is not None:
        oracle.check_prompts(prompts)
    records: list[dict[str, Any]] = []
    stream = open(output, "w", encoding="utf-8") if output else sys.stdout  # noqa: SIM115
    try:
        for start in range(0, len(prompts), BATCH):
            some = prompts[start : start + BATCH]
            if oracle is not None and choice is not None:
                found = choose(model, oracle, some, choice, num, budget, truncated, seed, start, verify)
            else:
                texts = decode(model, some, mode=mode, num=num, beams=beams, budget=budget, seed=seed, start=start)
                found = [[(text, {}) for text in answers] for answers in texts]
            for prompt, answers in zip(some, found, strict=True):
                for text, more in answers:
                    record = {**prompt.data, "prompt": row_of(prompt), field: text} | more
                    records.append(record)
                    print(json.dumps(record, ensure_ascii=False) if output else text, file=stream, flush=True)
    finally:
        if output:
            stream.close()
    if choice is not None and (rejected := sum(not record["accepted"] for record in records)):
        log.warning(
            "%d of %d texts are not accepted%s: none of the %d drawn for each was; raise --budget",
            rejected,
            len(records),
            " and left empty" if verify else "",
            choice[1] // choice[0] * choice[0],
        )
    return records


def choose(
    model: ControlledLM,
    oracle: Oracle,
    prompts: list[Prompt],
    choice: tuple[int, int],
    num: int,
    budget: int,
    truncated: str,
    seed: int,
    start: int,
    verify: bool,
) -> list[list[tuple[str, dict[str, Any]]]]:
    """Choose ``num`` texts for each prompt, each among K of its own."""
    answers = resample(
        model,
        oracle,
        [prompt for prompt in prompts for _ in range(num)],
        texts=choice[0],
        budget=choice[1],
        max_new_tokens=budget,
        truncated=truncated,
        seed=seed,
        offset=start * num,
    )
    found = []
    for answer in answers:
        numbers = {
            "accepted": answer.accepted,
            "score": answer.score,
            "texts_drawn": answer.num_texts,
            "tokens_drawn": answer.num_tokens,
            "effective_texts": round(answer.effective, 3),
            "log_z": answer.log_z if answer.accepted else None,
        }
        found.append(("" if verify and not answer.accepted else answer.text, numbers))
    return [found[i * num : (i + 1) * num] for i in range(len(prompts))]


def decode(
    model: ControlledLM, prompts: list[Prompt], *, mode: str, num: int, beams: int, budget: int, seed: int, start: int
) -> list[list[str]]:
    """Decode ``num`` texts for each prompt: independent samples, the greedy text, or the best beams."""
    base = model.base
    ids_PS, mask_PS = (tensor.to(base.device) for tensor in base.encode_prompts(prompts))
    if mode == "sample":
        uniform_NT = uniforms(range(start, start + len(prompts)), num, budget, seed, "generate")
        rows = sample(Decoder(model), ids_PS, mask_PS, base.eos_ids, uniform_NT).tokens
    else:
        width = 1 if mode == "greedy" else max(beams, num)
        out = model.generate(
            input_ids=ids_PS,
            attention_mask=mask_PS,
            do_sample=False,
            num_beams=width,
            num_return_sequences=num if mode == "beam" else 1,
            max_new_tokens=budget,
        )
        rows = out[:, ids_PS.shape[1] :].tolist()
    texts = [base.decode(row) for row in rows]
    each = len(texts) // len(prompts)
    return [texts[i * each : (i + 1) * each] for i in range(len(prompts))]


def _free_field(prompts: list[Prompt]) -> str:
    taken = {name for prompt in prompts for name in prompt.data}
    for name in ("text", "response"):
        if name not in taken:
            return name
    raise DataError("--input: rows have both a field `text` and a field `response`; rename one of them")


def _check_utf8(place: str, text: str) -> None:
    """Refuse bytes that are no UTF-8, which Python reads from a terminal as halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place} is not UTF-8 at character {error.start}") from None


def _lines_of_stdin() -> list[str]:
    try:
        return sys.stdin.read().removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 at byte {error.start}") from None


def _from_jsonl(file: Path) -> Iterator[Prompt]:
    if file.is_dir():
        raise DataError(f"--input {file}: is a folder")
    try:
        for number, (place, row) in enumerate(read_rows(file, "name a file of JSON lines"), 1):
            request = request_of(row, "prompt", place, "a text or a list of messages")
            data = {key: value for key, value in row.items() if key not in ("prompt", MESSAGES)}
            yield Prompt(str(number), request.text, data, request.turns)
    except DataError as error:
        raise DataError(f"--input {error}") from None
