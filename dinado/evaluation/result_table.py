"""The final table and the before-and-after samples, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dinado.evaluation.judged_samples import JudgedSamples
from dinado.evaluation.measures import MEASURES, measure
from dinado.evaluation.result_rows import Row


def print_table(console: Console, rows: Mapping[str, Row], title: str) -> None:
    """Print one line per model; an interval follows its number. No text is read as markup."""
    shown = {m.key: m.label for m in MEASURES if m.in_final and any(m.key in row for row in rows.values())}
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for name in shown.values():
        table.add_column(name, justify="right")
    for label, row in rows.items():
        table.add_row(Text(label), *(Text(cell(row, key)) for key in shown))
    console.print(table)


def print_samples(console: Console, before: JudgedSamples, after: JudgedSamples, count: int, name: str) -> None:
    """Print the first sample of some prompts, base beside controlled, with a mark for the oracle's verdict."""
    table = Table(title="Samples (first draw for each prompt, not picked)", title_justify="left", show_lines=True)
    for heading in ("prompt", "base", name):
        table.add_column(Text(heading), ratio=1)
    for prompt_id in list(dict.fromkeys(p.id for p in after.prompts))[:count]:
        table.add_row(_prompt(after, prompt_id), _first(before, prompt_id), _first(after, prompt_id))
    console.print(table)


def first_samples(samples: JudgedSamples, count: int) -> list[dict[str, object]]:
    """Return the first draw for each of some prompts, as plain records."""
    first: dict[str, dict[str, object]] = {}
    for prompt, record in zip(samples.prompts, samples.records(), strict=True):
        first.setdefault(prompt.id, record)
    return list(first.values())[:count]


def cell(row: Row, key: str) -> str:
    """Return a number of a row as tables show it, with its interval; or how many rollouts it would take."""
    value = row.get(key, math.nan)
    if math.isnan(value):
        wanted = row.get("val/kl_rollouts_wanted", math.nan)
        return f"needs {wanted:,.0f} rollouts" if key == "val/kl_to_optimum" and not math.isnan(wanted) else "-"
    text = f"{value:.{measure(key).digits}f}"
    low, high = row.get(f"{key}_low", math.nan), row.get(f"{key}_high", math.nan)
    return text if math.isnan(low) else f"{text} [{low:.2f}, {high:.2f}]"


def _prompt(samples: JudgedSamples, prompt_id: str) -> Text:
    return Text(next(p.text for p in samples.prompts if p.id == prompt_id))


def _first(samples: JudgedSamples, prompt_id: str) -> Text:
    rows: Sequence[int] = [i for i, p in enumerate(samples.prompts) if p.id == prompt_id]
    if not rows:
        return Text("")
    index = rows[0]
    good = samples.score[index] > 0.5
    text = Text("+ " if good else "- ", style="green" if good else "red")
    return text.append(samples.texts[index] + ("" if samples.finished[index] else " ..."), style="default")
