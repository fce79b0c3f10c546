"""Figures as PNG and SVG files for papers and slides, drawn by Matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from dinado.evaluation.measures import FRONTIERS, measure
from workbench.report.comparison import Comparison
from workbench.report.curves import panels
from workbench.report.palette import look

_MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "inverted_triangle": "v",
    "hex": "h",
    "star": "*",
    "plus": "P",
}
_POINTS = 2000
# A fixed hash salt makes the SVG files reproducible.
_STYLE = {
    "svg.hashsalt": "dinado",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9.0,
}


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every curve and every frontier as ``<name>.png`` and ``<name>.svg``; return the files."""
    labels = [group.label for group in comparison.groups]
    written: list[Path] = []
    with plt.rc_context(_STYLE):
        for panel in panels(comparison.groups, _POINTS):
            figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
            for curve in panel.curves:
                style = look(labels.index(curve.label))
                axes.plot(
                    curve.steps,
                    curve.values,
                    color=style.colour,
                    linestyle=(0, style.dash) if style.dash and curve.mean else "-",
                    linewidth=1.8 if curve.mean else 0.7,
                    alpha=1.0 if curve.mean else 0.4,
                    marker="o" if len(curve.steps) == 1 else None,
                    label=curve.label if curve.mean else None,
                )
            axes.set(xlabel="optimiser step", ylabel=panel.measure.unit, title=panel.measure.curve)
            written += _save(figure, axes, labels, folder, panel.measure.key)
        for key in FRONTIERS:
            if any(one.key == key for one in comparison.measures):
                written += _frontier(comparison, labels, key, folder)
    return written


def _frontier(comparison: Comparison, labels: Sequence[str], key: str, folder: Path) -> list[Path]:
    cost, success = measure(key), measure("val/success")
    figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for place, label in enumerate(labels):
        row = comparison.summaries[label]
        if key not in row or success.key not in row:
            continue
        x, y = row[key], row[success.key]
        bars = [
            [
                [0.0 if math.isnan(one.low) else one.mean - one.low],
                [0.0 if math.isnan(one.low) else one.high - one.mean],
            ]
            for one in (x, y)
        ]
        style = look(place)
        marker = _MARKERS[style.marker]
        axes.errorbar(
            [x.mean], [y.mean], xerr=bars[0], yerr=bars[1], color=style.colour, marker=marker, linestyle="", label=label
        )
    if key == "val/kl_from_base" and (points := comparison.best_of_n):
        curve = [[point.kl_from_base for point in points], [point.success for point in points]]
        axes.plot(*curve, color="0.4", linestyle="--", linewidth=1.2, zorder=0)
        axes.annotate(f"best of n, to {points[-1].n}", (curve[0][-1], curve[1][-1]), fontsize=8, color="0.4")
    axes.set(xlabel=f"{cost.label}{f', {cost.unit}' if cost.unit else ''}", ylabel=success.unit, ylim=(0, 1.03))
    axes.set_title(f"{success.label} against {cost.label}")
    return _save(figure, axes, labels, folder, f"success_against_{key.partition('/')[2]}")


def _save(figure: Any, axes: Any, labels: Sequence[str], folder: Path, name: str) -> list[Path]:
    if 1 < len(labels) <= 12:
        axes.legend(frameon=False, fontsize=8)
    files = [folder / f"{name.replace('/', '_')}.{kind}" for kind in ("png", "svg")]
    for file in files:
        figure.savefig(file, dpi=160, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
    return files
