"""The figures of the page, drawn by Bokeh: one glyph for all curves of a kind, filtered by group in the browser."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d, Span
from bokeh.plotting import figure

from dinado.evaluation.measures import Measure
from workbench.report.comparison import Comparison
from workbench.report.curves import Panel
from workbench.report.palette import look

_HEIGHT = 270
_INK = "#3b4252"
FILTERED = "by group"
"""Name of the renderers that the page filters; their column ``g`` holds the index of the group."""


def curves(panel: Panel, labels: Sequence[str], element: str) -> str:
    """Draw seeds as thin lines and means as thick ones; return JSON for ``Bokeh.embed.embed_item``."""
    plot = _figure(panel.measure, "optimiser step")
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    # The means are drawn last, on top of the seeds.
    chosen = sorted(panel.curves, key=lambda curve: curve.mean)
    places = [labels.index(curve.label) for curve in chosen]
    source = ColumnDataSource(
        {
            "xs": [curve.steps.astype(np.float32) for curve in chosen],
            "ys": [curve.values.astype(np.float32) for curve in chosen],
            "label": [curve.label for curve in chosen],
            "run": [curve.run for curve in chosen],
            "colour": [look(place).colour for place in places],
            "dash": [list(look(place).dash) if curve.mean else [] for curve, place in zip(chosen, places, strict=True)],
            "width": [2.4 if curve.mean else 1.0 for curve in chosen],
            "alpha": [1.0 if curve.mean else 0.4 for curve in chosen],
            "g": places,
        }
    )
    lines = plot.multi_line(
        "xs",
        "ys",
        source=source,
        line_color="colour",
        line_dash="dash",
        line_width="width",
        line_alpha="alpha",
        line_join="round",
        name=FILTERED,
        view=_view(len(chosen)),
    )
    single = [i for i, curve in enumerate(chosen) if len(curve.steps) == 1]
    if single:
        _dots(plot, [chosen[i] for i in single], [places[i] for i in single])
    tips = [("", "@label, @run"), ("step", "$snap_x{0,0}"), (panel.measure.curve, "$snap_y{0.0000}")]
    one_line = {"line_policy": "nearest", "limit": 1, "sort_by": [("width", "descending")]}
    plot.add_tools(HoverTool(renderers=[lines], tooltips=tips, **one_line))
    return _item(plot, element)


def frontier(comparison: Comparison, against: Measure, success: Measure, element: str) -> str:
    """Draw success against a cost: small markers for runs, a large one with its interval for a group's mean."""
    plot = _figure(success, against.label + (f", {against.unit}" if against.unit else ""))
    labels = [group.label for group in comparison.groups]
    small: dict[str, list[Any]] = {name: [] for name in ("x", "y", "label", "run", "colour", "marker", "g")}
    large: dict[str, list[Any]] = {name: [] for name in (*small, "x0", "x1", "y0", "y1")}
    for place, group in enumerate(comparison.groups):
        style, row = look(place), comparison.summaries[group.label]
        for run in group.runs:
            if against.key in run.final and success.key in run.final:
                values = (run.final[against.key], run.final[success.key], group.label, f"seed {run.seed}")
                _append(small, (*values, style.colour, style.marker, place))
        if against.key in row and success.key in row:
            x, y = row[against.key], row[success.key]
            text = f"mean of {len(group.runs)} seeds" if len(group.runs) > 1 else f"seed {group.runs[0].seed}"
            bars = [m if math.isnan(end) else end for m, end in ((x.mean, x.low), (x.mean, x.high))]
            bars += [m if math.isnan(end) else end for m, end in ((y.mean, y.low), (y.mean, y.high))]
            _append(large, (x.mean, y.mean, group.label, text, style.colour, style.marker, place, *bars))
    means = ColumnDataSource(large)
    for x0, y0, x1, y1 in (("x0", "y", "x1", "y"), ("x", "y0", "x", "y1")):
        bar = {"line_color": "colour", "line_width": 1.5, "name": FILTERED, "view": _view(len(labels))}
        plot.segment(x0, y0, x1, y1, source=means, **bar)
    dot = {"marker": "marker", "fill_color": "colour", "line_color": "white", "name": FILTERED}
    seeds = plot.scatter(
        "x", "y", source=ColumnDataSource(small), size=6, fill_alpha=0.45, view=_view(len(small["x"])), **dot
    )
    big = plot.scatter("x", "y", source=means, size=13, view=_view(len(large["x"])), **dot)
    number = f"{{0.{'0' * against.digits}}}"
    tips = [("", "@label, @run"), (against.label, f"@x{number}"), (success.label, "@y{0.000}")]
    plot.add_tools(HoverTool(renderers=[big, seeds], tooltips=tips, limit=1))
    _landmarks(plot, comparison, against)
    return _item(plot, element)


def _landmarks(plot: Any, comparison: Comparison, against: Measure) -> None:
    """Draw the base and KL(q*‖p), the distance of q* from it, both of which all runs of a comparison share."""
    final = next((run.final for run in comparison.runs if "base/success" in run.final), {})
    place = final.get(f"base/{against.key.partition('/')[2]}")
    if place is not None:
        plot.scatter([place], [final["base/success"]], marker="x", size=11, line_color=_INK, line_width=2)
        plot.text(
            [place], [final["base/success"]], ["base"], x_offset=9, y_offset=5, text_color=_INK, text_font_size="12px"
        )
    if against.key == "val/kl_from_base" and comparison.best_of_n:
        points = comparison.best_of_n
        x, y = [point.kl_from_base for point in points], [point.success for point in points]
        plot.line(x, y, line_color=_INK, line_dash="dashed", line_width=1.5)
        plot.text(x[-1:], y[-1:], [f"best of {points[-1].n}"], y_offset=-4, text_color=_INK, text_font_size="12px")
    optimum = final.get("base/kl_to_optimum")
    if against.key == "val/kl_from_base" and optimum is not None:
        plot.add_layout(Span(location=optimum, dimension="height", line_color=_INK, line_dash="dotted"))
        plot.text([optimum], [0.02], ["q*"], x_offset=-5, text_align="right", text_color=_INK, text_font_size="12px")
    plot.y_range = Range1d(0, 1.03)


def _dots(plot: Any, chosen: Sequence[Any], places: Sequence[int]) -> None:
    """Draw curves of a single point as markers, because a line of one point is invisible."""
    source = ColumnDataSource(
        {
            "x": [float(curve.steps[0]) for curve in chosen],
            "y": [float(curve.values[0]) for curve in chosen],
            "colour": [look(place).colour for place in places],
            "marker": [look(place).marker for place in places],
            "g": list(places),
        }
    )
    style = {"marker": "marker", "fill_color": "colour", "line_color": "white", "size": 8}
    plot.scatter("x", "y", source=source, name=FILTERED, view=_view(len(chosen)), **style)


def _figure(measure: Measure, x_label: str) -> Any:
    plot = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        tools="box_zoom,reset,save",
        active_drag=None,  # touch scrolling must not zoom
        toolbar_location="above",
        x_axis_label=x_label,
        y_axis_label=measure.unit or measure.label,
        output_backend="canvas",
        min_border_right=12,
    )
    plot.toolbar.autohide = True
    plot.toolbar.logo = None
    plot.outline_line_color = None
    plot.background_fill_color = plot.border_fill_color = None
    plot.grid.grid_line_color = "#e5e8ee"
    plot.xgrid.visible = False
    for axis in plot.axis:
        axis.axis_line_color = axis.major_tick_line_color = "#9aa3b2"
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.axis_label_text_color = axis.major_label_text_color = _INK
    return plot


def _view(count: int) -> CDSView:
    return CDSView(filter=BooleanFilter(booleans=[True] * count))


def _append(columns: dict[str, list[Any]], values: Sequence[Any]) -> None:
    for column, value in zip(columns.values(), values, strict=True):
        column.append(value)


def _item(plot: Any, element: str) -> str:
    return json.dumps(json_item(plot, element))
