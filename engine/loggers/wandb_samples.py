"""The rows of W&B's sample table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from dinado.evaluation.judged_samples import JudgedSamples
from workbench.report.palette import shade

COLUMNS = ("prompt", "text", "oracle", "R along the text")
END = "∎"
"""Mark for the end-of-sequence token, which has an R but no text."""


def rows(samples: JudgedSamples) -> Iterator[tuple[str, str, float, str]]:
    """Yield prompt, text, the oracle's verdict, and the text as HTML with every token coloured by predicted R."""
    columns = zip(samples.prompts, samples.texts, samples.score, samples.along, strict=True)
    for prompt, text, score, along in columns:
        yield prompt.transcript, text, float(score), coloured(along)


def coloured(along: Sequence[tuple[str, float]]) -> str:
    """Format tokens as HTML, each on the colour of predicted R of the prefix that ends with it, with R as tooltip.

    A line before the tokens gives R at the first and the last token in words, for readers who do not see the colour.
    """
    if not along:
        return ""
    first, last = along[0][1], along[-1][1]
    # Tokens without text are parts of a character; the last part shows the whole character.
    shown = [(piece, r) for piece, r in along[:-1] if piece] + [(along[-1][0] or END, last)]
    spans = [
        f'<span style="background:{shade(min(max(r, 0.0), 1.0))}" title="R {r:.2f}">{escape(piece)}</span>'
        for piece, r in shown
    ]
    head = f'<small style="color:#555">R {first:.2f} after the first token, {last:.2f} after the last</small>'
    style = "font:14px/1.6 sans-serif;color:#000;background:#fff;white-space:pre-wrap"
    return f'<meta charset="utf-8"><div style="{style}">{head}\n{"".join(spans)}</div>'
