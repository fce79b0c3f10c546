"""The style of groups in every figure: colour, dash and marker together, so that none relies on colour alone.

Also the background colour of a token, which shows predicted R.
"""

from __future__ import annotations

from typing import NamedTuple

# A contrast of at least 3:1 on white; most colour-blind readers can distinguish them (after Okabe and Ito, Tol).
_COLOURS = ("#0067a5", "#c1440e", "#00785a", "#8e3a8c", "#996500", "#4a4a4a", "#b3163c", "#3d7d8f")
_LOW, _MIDDLE, _HIGH = (255, 214, 196), (255, 247, 219), (164, 214, 247)
_DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 2), (9, 3, 2, 3), (12, 4))
_MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "plus")


class Look(NamedTuple):
    """The style of a group: colour, dash lengths (empty for a solid line) and the name of a marker."""

    colour: str
    dash: tuple[int, ...]
    marker: str


def look(index: int) -> Look:
    """Return the style of the group at this index; the first 40 are distinct."""
    colours = len(_COLOURS)
    dash = _DASHES[(index + index // colours) % len(_DASHES)]
    return Look(_COLOURS[index % colours], dash, _MARKERS[(index + index // colours) % len(_MARKERS)])


def shade(r: float) -> str:
    """Return the background colour for a predicted R of ``r`` in [0, 1]; black text is readable on all of them."""
    low, high, share = (_LOW, _MIDDLE, 2 * r) if r < 0.5 else (_MIDDLE, _HIGH, 2 * r - 1)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))
