"""Explained texts in a terminal: a row for each token, readable without colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MUCH = math.log(2)
"""Nats by which a token's probability must rise or fall to be marked: a factor of two."""
UP, DOWN, OTHER, END = "▲", "▼", "≠", "∎"
SHOWN = 3
LEGEND = (
    f"{UP} likelier by control by a factor of two or more, {DOWN} less likely, {OTHER} the base has another likeliest "
    f"token, {END} end of text. KL is KL(q||p) of the next token in nats."
)
# Blue and orange are told apart by readers of all kinds of colour vision.
_STYLES = {UP: "bold color(33)", DOWN: "bold color(208)", "": ""}


def visible(piece: str) -> str:
    """Return a token's text with its control characters made visible, so that none reaches the terminal."""
    shown = piece.replace("\n", "⏎")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def mark(log_ratio: float) -> str:
    """Return the mark of a token whose probability rose or fell much."""
    return UP if log_ratio >= MUCH else DOWN if log_ratio <= -MUCH else ""


def totals(block: Mapping[str, Any]) -> str:
    """Return the sums along a text in words."""
    ratio, kl = sum(block["log_q"]) - sum(block["log_p"]), sum(block["kl"])
    said = f"log q - log p {ratio:+.2f} nats, KL(q||p) along the text {kl:.2f} nats"
    if block.get("r"):
        return f"{said}; R {block['r_prompt']:.2f} before it, {block['r'][-1]:.2f} at its end"
    if block.get("r_over_r_prompt"):
        return f"{said}; R/R(c) {block['r_over_r_prompt'][-1]:.2f} at its end"
    return said


def spoken(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """Return a prompt of a record as a text: a conversation is its messages after their roles."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def print_explained(
    console: Console, prompt: str | Sequence[Mapping[str, str]], block: Mapping[str, Any] | None
) -> None:
    """Print a prompt, its text, and what control did at each token; None is a text that was left empty."""
    console.print(Text(visible(spoken(prompt)), style="bold"), soft_wrap=True)
    if block is None:
        console.print(Text("(no text)"))
        return
    ratios = [log_q - log_p for log_p, log_q in zip(block["log_p"], block["log_q"], strict=True)]
    coloured = Text("  ")
    for piece, ratio in zip(block["tokens"], ratios, strict=True):
        coloured.append(visible(piece), style=_STYLES[mark(ratio)])
    console.print(coloured, soft_wrap=True)
    console.print(Text(f"  {totals(block)}"), soft_wrap=True)
    console.print(_table(block, ratios))


def _word(piece: str) -> str:
    """Return a candidate's text without the space before it; one of spaces alone in quotes."""
    return visible(piece).strip() or f"'{piece}'"


def _table(block: Mapping[str, Any], ratios: Sequence[float]) -> Table:
    numbers = {
        name: block[key]
        for name, key in (("R", "r"), ("R/R(c)", "r_over_r_prompt"), ("log beta", "log_beta"))
        if key in block
    }
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("", "token", "p", "q", "log q/p", "KL", *numbers, "likeliest of p", "likeliest of q"):
        table.add_column(name, justify="left" if name in ("", "token") or "likeliest" in name else "right")
    for place, (piece, ratio) in enumerate(zip(block["tokens"], ratios, strict=True)):
        sign = mark(ratio)
        last = place == len(ratios) - 1
        cells: list[Text | str] = [
            Text(f"{sign or ' '}{OTHER if block['changed'][place] else ' '}", style=_STYLES[sign]),
            Text(visible(piece) or (END if last else "·"), style=_STYLES[sign]),
            *(f"{math.exp(block[key][place]):.3f}" for key in ("log_p", "log_q")),
            f"{ratio:+.2f}",
            f"{block['kl'][place]:.2f}",
            *(f"{values[place]:.2f}" for values in numbers.values()),
        ]
        for key, at in (("likeliest_p", 1), ("likeliest_q", 2)):
            cells.append(Text("  ".join(f"{_word(one[0])} {one[at]:.2f}" for one in block[key][place][:SHOWN])))
        table.add_row(*cells)
    return table
