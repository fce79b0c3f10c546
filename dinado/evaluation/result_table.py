"""The final table and the before-and-after samples, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dinado.evaluation.judged_samples import JudgedSamples
from dinado.evaluation.result_rows import Row

COLUMNS = {
    "val/success": "success",
    "val/coverage": "coverage",
    "val/kl_to_optimum": "KL(q*||q)",
    "val/gap_closed": "gap closed",
    "val/kl_from_base": "KL(q||p)",
    "val/r_calibration_error": "R error",
    "val/r_auc_within_prompt": "R AUC",
    "val/distinct_2": "distinct-2",
    "val/truncated": "cut off",
    "val/bleu4": "BLEU-4",
    "val/rouge_l": "ROUGE-L",
    "val/cider": "CIDEr",
}


def print_table(console: Console, rows: Mapping[str, Row], title: str) -> None:
    """One line a model; a number with an interval is followed by it."""
    shown = {key: name for key, name in COLUMNS.items() if any(key in row for row in rows.values())}
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in shown.values():
        table.add_column(name, justify="right")
    for label, row in rows.items():
        table.add_row(label, *(_cell(row, key) for key in shown))
    console.print(table)


def print_samples(console: Console, before: JudgedSamples, after: JudgedSamples, count: int, name: str) -> None:
    """First sample of some prompts, base beside controlled, a mark for what the oracle accepted."""
    table = Table(title="Samples (first draw for each prompt, not picked)", title_justify="left", show_lines=True)
    for heading in ("prompt", "base", name):
        table.add_column(heading, ratio=1)
    for prompt_id in list(dict.fromkeys(p.id for p in after.prompts))[:count]:
        table.add_row(_prompt(after, prompt_id), _first(before, prompt_id), _first(after, prompt_id))
    console.print(table)


def first_samples(samples: JudgedSamples, count: int) -> list[dict[str, object]]:
    """The first draw for each of some prompts, as plain records."""
    first: dict[str, dict[str, object]] = {}
    for prompt, record in zip(samples.prompts, samples.records(), strict=True):
        first.setdefault(prompt.id, record)
    return list(first.values())[:count]


def _cell(row: Row, key: str) -> str:
    value = row.get(key, math.nan)
    if math.isnan(value):
        return "-"
    digits = 1 if key in ("val/bleu4", "val/rouge_l", "val/cider") else 3
    text = f"{value:.{digits}f}"
    low, high = row.get(f"{key}_low", math.nan), row.get(f"{key}_high", math.nan)
    return text if math.isnan(low) else f"{text} [{low:.2f}, {high:.2f}]"


def _prompt(samples: JudgedSamples, prompt_id: str) -> str:
    return next(p.text for p in samples.prompts if p.id == prompt_id)


def _first(samples: JudgedSamples, prompt_id: str) -> Text:
    rows: Sequence[int] = [i for i, p in enumerate(samples.prompts) if p.id == prompt_id]
    if not rows:
        return Text("")
    index = rows[0]
    good = samples.score[index] > 0.5
    text = Text("+ " if good else "- ", style="green" if good else "red")
    return text.append(samples.texts[index] + ("" if samples.finished[index] else " ..."), style="default")
