"""The comparison as a table in a terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dinado.evaluation.best_of_n import kl_at
from dinado.evaluation.measures import measure
from workbench.report.comparison import Comparison, ends


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the groups with their numbers, the tests against the best group, the verdict and the notes."""
    measures = comparison.measures
    table = Table(
        title="mean over seeds [95 % interval, Student]; * one seed: interval over prompts", title_justify="left"
    )
    table.add_column("")
    table.add_column("seeds", justify="right")
    for one in measures:
        table.add_column(one.label, justify="right")
    for group in comparison.groups:
        row = comparison.summaries[group.label]
        cells = []
        for one in measures:
            summary = row.get(one.key)
            if summary is None:
                cells.append("-")
                continue
            star = "*" if summary.over == "prompts" and ends(summary, one) else ""
            cells.append(f"{summary.mean:.{one.digits}f}{star}\n{ends(summary, one)}".rstrip())
        best = group is comparison.best
        table.add_row(Text(group.label, style="bold" if best else ""), str(len(group.runs)), *cells)
    console.print(table)
    for key, tests in comparison.tests.items():
        if tests:
            console.print(_tests(comparison, key))
    console.print(Text(comparison.verdict, style="bold"), soft_wrap=True)
    for line in against_best_of_n(comparison):
        console.print(Text(line), soft_wrap=True)
    for note in comparison.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)


def against_best_of_n(comparison: Comparison) -> list[str]:
    """Describe what each group pays for its success beside best-of-n of the base, which needs no training."""
    lines = []
    for group in comparison.groups:
        row = comparison.summaries[group.label]
        success, cost = row.get("val/success"), row.get("val/kl_from_base")
        if success is None or cost is None:
            continue
        least = kl_at(comparison.best_of_n, success.mean)
        if not math.isnan(least):
            times = f", {cost.mean / least:.1f} times as much" if least > 0 else ""
            lines.append(
                f"{group.label}: KL(q||p) {cost.mean:.2f} for success {success.mean:.2f}; best-of-n has it at "
                f"{least:.2f} or less{times}"
            )
    return lines


def _tests(comparison: Comparison, key: str) -> Table:
    of, tests = measure(key), comparison.tests[key]
    best = comparison.groups[0].label
    table = Table(title=Text(f"{of.label} of {best} minus that of ..."), title_justify="left")
    for name in ("", "difference", "p (permutation, Holm)", "over"):
        table.add_column(name, justify="left" if name in ("", "over") else "right")
    for label, test in tests.items():
        low, high = test.difference.low, test.difference.high
        cell = f"{test.difference.mean:+.{of.digits}f} [{low:+.{of.digits}f}, {high:+.{of.digits}f}]"
        table.add_row(Text(label), cell, f"{test.p:.2g}", tested_over(test.over, test.counts))
    return table


def tested_over(over: str, counts: tuple[int, int]) -> str:
    """Describe the units of a test."""
    return f"{counts[0]} shared prompts" if over == "prompts" else f"{counts[0]} and {counts[1]} seeds"
