"""How groups look, the same in every figure: a colour, a dash and a marker, so that colour alone says nothing.

And the colour behind a token, which stands for predicted R.
"""

from __future__ import annotations

from typing import NamedTuple

# Dark enough for 3:1 on white, and told apart by most colour-blind readers (after Okabe and Ito, Tol).
_COLOURS = ("#0067a5", "#c1440e", "#00785a", "#8e3a8c", "#996500", "#4a4a4a", "#b3163c", "#3d7d8f")
_LOW, _MIDDLE, _HIGH = (255, 214, 196), (255, 247, 219), (164, 214, 247)
_DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 2), (9, 3, 2, 3), (12, 4))
_MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "plus")


class Look(NamedTuple):
    """Colour, dash lengths (none for a full line) and the name of a marker."""

    colour: str
    dash: tuple[int, ...]
    marker: str


def look(index: int) -> Look:
    """The look of the group at this place; forty differ."""
    colours = len(_COLOURS)
    dash = _DASHES[(index + index // colours) % len(_DASHES)]
    return Look(_COLOURS[index % colours], dash, _MARKERS[(index + index // colours) % len(_MARKERS)])


def shade(r: float) -> str:
    """The colour behind a token whose predicted R is ``r``, from 0 to 1; black text is readable on all of them."""
    low, high, share = (_LOW, _MIDDLE, 2 * r) if r < 0.5 else (_MIDDLE, _HIGH, 2 * r - 1)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))
