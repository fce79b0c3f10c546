"""The report as one self-contained HTML file: Bokeh's script, the figures' data, tables and texts."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.resources import INLINE
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dinado.evaluation.measures import FRONTIERS, Measure, measure
from workbench.report import plots
from workbench.report.agreement import differing
from workbench.report.comparison import Comparison, ends
from workbench.report.curves import Panel, panels
from workbench.report.palette import look, shade
from workbench.report.sample_pairs import LEVELS, side_by_side
from workbench.report.terminal import tested_over

_HERE = Path(__file__).parent
_MARKS = {
    "circle": "M0-5A5 5 0 1 0 .01-5Z",
    "square": "M-4.5-4.5H4.5V4.5H-4.5Z",
    "triangle": "M0-5.5L5.5 4.5H-5.5Z",
    "inverted_triangle": "M0 5.5L5.5-4.5H-5.5Z",
    "diamond": "M0-6L5 0 0 6-5 0Z",
    "hex": "M5 0L2.5 4.5H-2.5L-5 0-2.5-4.5H2.5Z",
    "star": "M0-6L1.8-1.8 6-1.8 2.6 1 4 5.5 0 2.8-4 5.5-2.6 1-6-1.8-1.8-1.8Z",
    "plus": "M-1.5-5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5V-1.5H-1.5Z",
}


def render(comparison: Comparison, refresh: float | None = None) -> str:
    """Render the page as HTML.

    Args:
        refresh: seconds after which the browser reloads the page; None for a page that does not reload.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    labels = [group.label for group in comparison.groups]
    drawn = panels(comparison.groups)
    success = measure("val/success")
    costs = [measure(key) for key in FRONTIERS if any(one.key == key for one in comparison.measures)]
    fronts = [_frontier(comparison, cost, success, number) for number, cost in enumerate(costs)]
    texts, hidden = side_by_side(comparison.groups)
    return environment.get_template("page.html").render(
        comparison=comparison,
        title=_title(comparison),
        groups=[_legend(place, label) for place, label in enumerate(labels)],
        rows=[_row(comparison, place) for place in range(len(labels))],
        measures=comparison.measures,
        tests=_tests(comparison),
        fronts=fronts,
        figures=[_curve_figure(panel, labels, number) for number, panel in enumerate(drawn)],
        thinned=max((panel.thinned for panel in drawn), default=0),
        texts=texts,
        hidden_texts=hidden,
        levels=[shade(level / (LEVELS - 1)) for level in range(LEVELS)],
        settings=_settings(comparison),
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        refresh=refresh,
        bokeh=_bokeh(),
        bokeh_version=version("bokeh"),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        js=(_HERE / "page.js").read_text(encoding="utf-8"),
    )


def _bokeh() -> str:
    """Return Bokeh's core script, without the scripts for widgets and tables, which this page does not use."""
    return next(raw for raw in INLINE.js_raw if len(raw) > 500_000).replace("</script", "<\\/script")


def _title(comparison: Comparison) -> str:
    groups, runs = len(comparison.groups), len(comparison.runs)
    return f"{groups} variant{'s' if groups != 1 else ''}, {runs} run{'s' if runs != 1 else ''}"


def _legend(place: int, label: str) -> dict[str, Any]:
    style = look(place)
    dash = ",".join(map(str, style.dash)) or "none"
    return {"label": label, "colour": style.colour, "dash": dash, "mark": _MARKS[style.marker]}


def _row(comparison: Comparison, place: int) -> dict[str, Any]:
    group = comparison.groups[place]
    summaries = comparison.summaries[group.label]
    cells = []
    for one in comparison.measures:
        summary = summaries.get(one.key)
        if summary is None:
            cells.append({"value": "", "mean": "–", "ends": "", "star": False})
            continue
        shown = ends(summary, one)
        star = summary.over == "prompts" and bool(shown)
        cells.append(
            {"value": repr(summary.mean), "mean": f"{summary.mean:.{one.digits}f}", "ends": shown, "star": star}
        )
    unfinished = sorted({run.status for run in group.runs if not run.finished})
    return {"place": place, "group": group, "cells": cells, "status": ", ".join(unfinished)}


def _tests(comparison: Comparison) -> list[dict[str, Any]]:
    found = []
    for key, tests in comparison.tests.items():
        of = measure(key)
        rows = []
        for label, test in tests.items():
            low, high = (f"{end:+.{of.digits}f}" for end in test.difference[1:])
            place = next(i for i, group in enumerate(comparison.groups) if group.label == label)
            mean = f"{test.difference.mean:+.{of.digits}f}"
            over = tested_over(test.over, test.counts)
            rows.append(
                {
                    "place": place,
                    "label": label,
                    "mean": mean,
                    "ends": f"[{low}, {high}]",
                    "p": f"{test.p:.2g}",
                    "over": over,
                }
            )
        if rows:
            found.append({"of": of, "rows": rows})
    return found


def _curve_figure(panel: Panel, labels: list[str], number: int) -> dict[str, Any]:
    rows = []
    for curve in panel.curves:
        if curve.mean:
            values = (curve.values[0], curve.values.min(), curve.values.max(), curve.values[-1])
            rows.append(
                {"place": labels.index(curve.label), "label": curve.label, "cells": [_short(v) for v in values]}
            )
    name = f"curve-{number}"
    return {
        "id": name,
        "title": panel.measure.curve,
        "key": panel.measure.key,
        "summary": f"{panel.measure.curve} over optimiser steps, for {len(rows)} variants.",
        "head": ("first", "lowest", "highest", "last"),
        "rows": rows,
        "item": _json(plots.curves(panel, labels, name)),
    }


def _frontier(comparison: Comparison, cost: Measure, success: Measure, number: int) -> dict[str, Any]:
    rows = []
    for place, group in enumerate(comparison.groups):
        found = comparison.summaries[group.label]
        if cost.key in found and success.key in found:
            cells = [f"{found[one.key].mean:.{one.digits}f}" for one in (cost, success)]
            rows.append({"place": place, "label": group.label, "cells": cells})
    name = f"frontier-{number}"
    return {
        "id": name,
        "title": f"{success.label} against {cost.label}",
        "key": cost.key,
        "summary": f"Each variant's success against its {cost.label}, with 95 % intervals.",
        "head": (cost.label, success.label),
        "rows": rows,
        "item": _json(plots.frontier(comparison, cost, success, name)),
    }


def _settings(comparison: Comparison) -> dict[str, Any]:
    """Tabulate the settings in which the runs differ, one column per group; values in one cell differ by seed."""
    keys = [key for key in differing(comparison.runs) if key != "description"]
    rows = []
    for key in keys:
        cells = []
        for group in comparison.groups:
            values = list(dict.fromkeys(run.settings[key] for run in group.runs))
            cells.append(", ".join(values[:8]) + (" ..." if len(values) > 8 else ""))
        rows.append((key, cells))
    return {"rows": rows, "runs": [(place, run) for place, one in enumerate(comparison.groups) for run in one.runs]}


def _short(value: float) -> str:
    return np.format_float_positional(float(f"{value:.4g}"), trim="-")


def _json(text: str) -> str:
    """Return JSON that is safe inside a script element."""
    return json.dumps(json.loads(text), separators=(",", ":")).replace("<", "\\u003c")
