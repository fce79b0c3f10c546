"""Explained texts as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workbench.report.explained_view import END, OTHER, mark, spoken, totals, visible

_HERE = Path(__file__).parent
_STEPS = (math.log(1.25), math.log(2), math.log(5), math.log(20))
"""Nats of |log q - log p| from which the background of a token is darker."""


def render_explained(title: str, note: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Render the page as HTML.

    Args:
        title: the model whose texts these are.
        note: what is shown of R.
        records: texts with ``prompt`` and ``explained``, as ``generate.py`` writes them.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    texts = [
        {
            "prompt": spoken(record["prompt"]),
            "totals": totals(record["explained"]) if record["explained"] else "",
            "tokens": _tokens(record["explained"]) if record["explained"] else [],
        }
        for record in records
    ]
    return environment.get_template("explained.html").render(
        title=title, note=note, texts=texts, css=(_HERE / "explained.css").read_text(encoding="utf-8"), other=OTHER
    )


def _tokens(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for place, piece in enumerate(block["tokens"]):
        ratio = block["log_q"][place] - block["log_p"][place]
        level = sum(abs(ratio) >= step for step in _STEPS)
        numbers = {
            "p": f"{math.exp(block['log_p'][place]):.4f}",
            "q": f"{math.exp(block['log_q'][place]):.4f}",
            "log q - log p": f"{ratio:+.2f}",
            "KL(q||p)": f"{block['kl'][place]:.3f}",
        }
        names = (("R after it", "r"), ("R/R(c) after it", "r_over_r_prompt"), ("log beta", "log_beta"))
        numbers |= {name: f"{block[key][place]:.3f}" for name, key in names if key in block}
        last = place == len(block["tokens"]) - 1
        found.append(
            {
                "text": visible(piece) or (END if last else "·"),
                "breaks": piece.count("\n"),
                "shade": f"{'u' if ratio > 0 else 'd'}{level}" if level else "",
                "mark": mark(ratio),
                "changed": block["changed"][place],
                "r": next((f"{block[key][place]:.2f}" for _, key in names[:2] if key in block), ""),
                "numbers": numbers,
                "sides": [
                    ("base p", [_candidate(one) for one in block["likeliest_p"][place]]),
                    ("controlled q", [_candidate(one) for one in block["likeliest_q"][place]]),
                ],
            }
        )
    return found


def _candidate(one: Sequence[Any]) -> tuple[str, str, str]:
    piece, p, q = one
    return visible(piece), f"{p:.3f}", f"{q:.3f}"
