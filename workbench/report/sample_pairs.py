"""Samples side by side: the first answers of the base and of each group to the first prompts, with predicted R."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.report.groups import Group
from workbench.report.run_reader import is_number

_PROMPTS = 6
_TEXTS = 240
_LONGEST = 4000
LEVELS = 11
END = " ∎"
"""Mark for the end-of-sequence token, which has an R but no text."""


@dataclass
class Token:
    """A token's text and predicted R, the probability that the oracle accepts a text that begins with this prefix.

    ``level`` is R in tenths.
    """

    text: str
    r: float

    @property
    def level(self) -> int:
        return round(min(max(self.r, 0.0), 1.0) * (LEVELS - 1))


@dataclass
class Answer:
    """One sampled response.

    Attributes:
        group: index of the group; None for the base.
        tokens: empty where the run did not record R along the text.
    """

    group: int | None
    label: str
    text: str
    score: float
    finished: bool
    tokens: list[Token]

    @property
    def spoken(self) -> str:
        """R along the text in words, for readers who do not see the colour."""
        if not self.tokens:
            return ""
        return (
            f"predicted R from {self.tokens[0].r:.2f} after the first token to {self.tokens[-1].r:.2f} after the last"
        )


def side_by_side(groups: Sequence[Group]) -> tuple[list[tuple[str, list[Answer]]], int]:
    """Return prompts with their answers, and the number of groups left out to keep the page small."""
    tables = [_first(group.runs[0].samples.get("after", ())) for group in groups]
    before = next(
        (_first(group.runs[0].samples["before"]) for group in groups if group.runs[0].samples.get("before")), {}
    )
    prompts = list(dict.fromkeys(prompt for table in tables for prompt in table))[:_PROMPTS]
    shown = max(1, _TEXTS // max(1, len(prompts)))
    found = []
    for prompt in prompts:
        answers = [_answer(None, "base", before[prompt])] if prompt in before else []
        for place, (group, table) in enumerate(zip(groups, tables, strict=True)):
            if prompt in table and place < shown:
                answers.append(_answer(place, group.label, table[prompt]))
        found.append((prompt, answers))
    return found, max(0, len(groups) - shown)


def _first(records: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for record in records:
        found.setdefault(record["prompt"], record)
    return found


def _answer(place: int | None, label: str, record: Mapping[str, Any]) -> Answer:
    text = str(record.get("text", ""))
    pieces, r = record.get("tokens"), record.get("r")
    tokens = []
    if isinstance(pieces, list) and isinstance(r, list) and len(pieces) == len(r) and all(map(is_number, r)):
        tokens = _visible([Token(str(piece), float(value)) for piece, value in zip(pieces, r, strict=True)])
    score, finished = float(record["score"]), bool(record.get("finished", True))
    if len(text) > _LONGEST:
        text, tokens = f"{text[:_LONGEST]} ...", tokens[: _LONGEST // 4]
    return Answer(place, label, text, score, finished, tokens)


def _visible(tokens: list[Token]) -> list[Token]:
    """Remove tokens that add no text, such as parts of a character; a last token without text becomes ``END``."""
    shown = [token for token in tokens[:-1] if token.text]
    last = tokens[-1:]
    return shown + [token if token.text else Token(END, token.r) for token in last]
