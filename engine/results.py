"""The numbers of a finished run: read, merged, written and shown."""

from __future__ import annotations

import json
import math

from rich.console import Console

from dinado.evaluation.result_rows import Row
from dinado.evaluation.result_table import print_samples, print_table
from dinado.ranks import is_writer
from engine.evaluation import Report
from workbench.run_folder import RunFolder
from workbench.settings.config import Config


def last_numbers(folder: RunFolder) -> Row:
    """Return the numbers of the last logged step and the last validation, from this process or an earlier start."""
    numbers: Row = {}
    for record in folder.metrics():
        if "train/loss" in record or "val/kl_to_optimum" in record:
            numbers |= {key: value for key, value in record.items() if key != "step"}
    return {key: math.nan if value is None else value for key, value in numbers.items()}


def final_metrics(config: Config, report: Report, folder: RunFolder) -> Row:
    """Merge the method's row with the reference rows under their own prefixes; write samples and table to disk."""
    metrics = dict(report.rows[config.method])
    for label, prefix in (("base", "base"), *((k, "best_of_n") for k in report.rows if k.startswith("best of"))):
        metrics |= {f"{prefix}/{key.removeprefix('val/')}": value for key, value in report.rows[label].items()}
    if is_writer():
        samples = folder.path / "samples"
        samples.mkdir(exist_ok=True)
        records = {"before": report.before.records(), "after": report.after.records(), "held_out": report.held_out}
        for name, rows in records.items():
            lines = [json.dumps(row) for row in rows]
            (samples / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (folder.path / "table.json").write_text(json.dumps(report.rows, indent=2) + "\n", encoding="utf-8")
    return metrics


def show_results(console: Console, config: Config, report: Report, task: str) -> None:
    """Print the table and some samples."""
    error = report.rows[config.method].get("val/kl_to_optimum_se")
    exact = "" if error is None else f"; standard error of the method's KL(q*||q): {error:.2g}"
    print_table(console, report.rows, f"{task}: held-out prompts, 95 % intervals over prompts{exact}")
    if config.eval.show and any(report.after.texts):
        print_samples(console, report.before, report.after, config.eval.show, config.method)
