"""Machine-readable forms of a comparison: the table of groups as CSV, everything as JSON."""

from __future__ import annotations

import csv
import io
from typing import Any

from workbench.report.comparison import Comparison


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain values: the best group, all groups with their numbers, tests and notes."""
    best, by = comparison.best, comparison.ranked_by
    return {
        "best": None if best is None else best.label,
        "ranked_by": None if by is None else by.key,
        "verdict": comparison.verdict,
        "groups": [
            {
                "label": group.label,
                "settings": group.settings,
                "runs": [str(run.path) for run in group.runs],
                "seeds": [run.seed for run in group.runs],
                "numbers": {
                    key: {"mean": s.mean, "low": s.low, "high": s.high, "seeds": s.seeds, "over": s.over}
                    for key, s in comparison.summaries[group.label].items()
                },
            }
            for group in comparison.groups
        ],
        "tests": {
            key: {
                label: {
                    "difference": test.difference.mean,
                    "low": test.difference.low,
                    "high": test.difference.high,
                    "p": test.p,
                    "over": test.over,
                    "units": list(test.counts),
                }
                for label, test in tests.items()
            }
            for key, tests in comparison.tests.items()
        },
        "notes": comparison.notes,
    }


def as_csv(comparison: Comparison) -> str:
    """Format one line per group: label, settings that differ, seeds, each number with the ends of its interval."""
    settings = list(dict.fromkeys(key for group in comparison.groups for key in group.settings))
    keys = [one.key for one in comparison.measures]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", *settings, "seeds", *(f"{key}{end}" for key in keys for end in ("", "_low", "_high"))])
    for group in comparison.groups:
        row: list[Any] = [group.label, *(group.settings.get(key, "") for key in settings), len(group.runs)]
        for key in keys:
            summary = comparison.summaries[group.label].get(key)
            row += ["", "", ""] if summary is None else ["" if v != v else v for v in summary[:3]]
        writer.writerow(row)
    return text.getvalue()
