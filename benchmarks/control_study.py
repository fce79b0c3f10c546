"""Control on a real model: every method on the same rollouts and the same number of optimiser steps.

    python benchmarks/control_study.py                        all methods, three seeds; hours on a laptop
    python benchmarks/control_study.py --seeds 1 --only "sft on positives,dinado_hard"
    python benchmarks/control_study.py --quick --json         one seed of two rows, fewer rollouts and steps
    python benchmarks/control_study.py optim.steps=40         settings for every run

It runs ``train.py commongen_smollm2`` once for each method and seed, skips runs that are in the results file, and
writes docs/results/commongen_smollm2.json and .md after every run. A row's differences from fine-tuning on accepted
rollouts are paired by prompt, over the seeds that both have, with 95 % intervals over prompts. Every run ends with the
weights of its best held-out distance. ``--json`` ends with one object about the method that closes most of the gap:

    gap_closed, success           means over seeds
    frontier_ratio                its KL(q||p) over that of best-of-n of the base at the same success
    sft_gap_closed                of fine-tuning on accepted rollouts
    gap_over_sft_low              lower end of the interval of the difference of the two

Several of these may run side by side with different --only or --seeds: results are read again before they are written.
A run is identified by its row, its seed and a digest of all settings that decide its outcome, those of the experiment
included. ``--quick`` has a results file of its own, docs/results/commongen_quick.json.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dinado.evaluation.best_of_n import frontier, kl_at  # noqa: E402
from dinado.evaluation.measures import measure  # noqa: E402
from dinado.metrics.distance import difference  # noqa: E402
from dinado.metrics.intervals import Interval, paired_difference  # noqa: E402
from dinado.rollouts.store_spec import digest  # noqa: E402
from workbench.settings import schema  # noqa: E402
from workbench.settings.loader import load  # noqa: E402
from workbench.settings.methods import PREDICT_R  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "commongen_smollm2.json"
QUICK_RESULTS = RESULTS.with_name("commongen_quick.json")
EXPERIMENT = "commongen_smollm2"

BASELINE = "sft on positives"
ENTRIES = {
    "sft on references": "method=sft sft_data=references",
    BASELINE: "method=sft",
    "nado": "method=nado",
    "dinado_hard": "method=dinado_hard",
    "dinado_soft": "method=dinado_soft",
    "dinado_merge": "method=dinado_merge",
    "published dinado_soft": "method=dinado_soft objective.masks=official",
    "published dinado_merge": "method=dinado_merge objective.masks=official",
}
PARTS = ("log_ratio", "gap", "known")
QUICK = (
    "data.train_prompts=160 rollouts.per_prompt=8 data.val_prompts=32 eval.samples_per_prompt=8 optim.steps=24 "
    "trainer.val_every=12"
)
QUICK_ROWS = (BASELINE, "dinado_hard")
SHOWN = (
    "success coverage kl_from_base kl_to_optimum gap_closed kl_prompts_unresolved r_auc_within_prompt_half bleu4 "
    "rouge_l cider distinct_2 truncated"
)
COLUMNS = {f"val/{name}": measure(f"val/{name}").label.replace("|", "\\|") for name in SHOWN.split()}


def main() -> int:
    """Run the missing runs, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds, default="3", help="how many, from 0 on, or a list such as 0,2 or 1,")
    parser.add_argument("--only", default="", help="comma-separated rows of the table")
    parser.add_argument("--quick", action="store_true", help="one seed of two rows with fewer rollouts and steps")
    parser.add_argument("--json", action="store_true", help="end with the summary as one JSON object")
    parser.add_argument("settings", nargs="*", help="key=value for every run")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.only.split(",") if name.strip()] or list(ENTRIES)
    if unknown := [name for name in names if name not in ENTRIES]:
        parser.error(f"unknown row {unknown[0]!r}; there are: {', '.join(ENTRIES)}")
    if arguments.quick:
        names, arguments.seeds = [name for name in names if arguments.only or name in QUICK_ROWS], arguments.seeds[:1]
        arguments.settings = [*QUICK.split(), *arguments.settings]
    # Methods that look ahead come first, since sampling for them remembers the likely tokens.
    names = sorted(names, key=lambda name: name not in PREDICT_R)
    todo = [(name, seed) for seed in arguments.seeds for name in names]
    settings_of = {name: " ".join([entry, *arguments.settings]) for name, entry in ENTRIES.items()}
    digest_of = {name: digest_of_settings(settings) for name, settings in settings_of.items()}
    file = QUICK_RESULTS if arguments.quick else RESULTS
    for number, (name, seed) in enumerate(todo, 1):
        settings = settings_of[name]
        if (name, seed, digest_of[name]) in {(run["row"], run["seed"], run["config"]) for run in stored(file)}:
            continue
        print(f"[{number}/{len(todo)}] {name}, seed {seed}", flush=True)
        started = time.monotonic()
        measured = run_one(settings.split(), seed)
        minutes = round((time.monotonic() - started) / 60, 1)
        run = {"row": name, "seed": seed, "settings": settings, "config": digest_of[name], "minutes": minutes}
        store(file, run | measured, digest_of)
    runs = [run for run in stored(file) if run["config"] == digest_of[run["row"]]]
    print(table(runs))
    if arguments.json:
        print(json.dumps(summary(runs)))
    return 0


def seeds(text: str) -> list[int]:
    """Parse seeds: ``3`` means 0, 1, 2 and ``0,2`` means itself; raise ValueError for anything else."""
    return [int(part) for part in text.split(",") if part] if "," in text else list(range(int(text)))


def stored(file: Path) -> list[dict[str, Any]]:
    """Return the runs measured so far."""
    return json.loads(file.read_text())["runs"] if file.exists() else []


def digest_of_settings(settings: str) -> str:
    """Compute a digest of every setting of the experiment that decides the outcome of a run.

    It covers only settings that differ from their defaults, so that a new setting that changes nothing keeps it equal.
    """
    kept = schema.departures(load(EXPERIMENT, settings.split()).config)
    ways = ("seed", "runs", "trainer.", "logging.", "data.cache", "data.root", "data.states")
    decide = ("trainer.keep_best", "trainer.val_every")
    return digest({key: value for key, value in kept.items() if key in decide or not key.startswith(ways)})


def store(file: Path, run: dict[str, Any], digest_of: dict[str, str]) -> None:
    """Add a run, and rewrite the table of the rows with these settings."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(file) + ".lock"):
        runs = [*stored(file), run]
        file.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        file.with_suffix(".md").write_text(table([r for r in runs if r["config"] == digest_of[r["row"]]]))


def run_one(settings: list[str], seed: int) -> dict[str, Any]:
    """Run one training; return its final metrics and the success of every held-out prompt."""
    command = [sys.executable, "train.py", EXPERIMENT, f"seed={seed}", *settings, "trainer.progress=false", "--json"]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {finished.returncode}")
    metrics = json.loads(finished.stdout.splitlines()[-1])
    samples = ROOT / metrics.pop("run_dir") / "samples"
    base, after = (scores_by_prompt(samples / f"{name}.jsonl") for name in ("before", "after"))
    held_out = [json.loads(line) for line in (samples / "held_out.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = " ".join(["python", *command[1:]])
    return {
        "command": shown,
        "metrics": metrics,
        "success_by_prompt": [mean(values) for values in after],
        "base_by_prompt": [[int(sum(score > 0.5 for score in values)), len(values)] for values in base],
        "held_out": [[record[part] for part in PARTS] for record in held_out],
    }


def scores_by_prompt(samples: Path) -> list[list[float]]:
    """Return the scores of the samples of each prompt."""
    scores: dict[str, list[float]] = {}
    for record in map(json.loads, samples.read_text(encoding="utf-8").splitlines()):
        scores.setdefault(record["prompt"], []).append(record["score"])
    return list(scores.values())


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Describe the method that closes most of the gap, beside fine-tuning on accepted rollouts."""
    by_row = {name: mine for name in ENTRIES if (mine := [run for run in runs if run["row"] == name])}
    ours = [name for name in by_row if name in PREDICT_R]
    if not ours:
        return {}
    best = max(ours, key=lambda name: mean_of(by_row[name], "val/gap_closed"))
    ratios = []
    for run in by_row[best]:
        least = kl_at(frontier(run["base_by_prompt"]), run["metrics"]["val/success"])
        ratios.append(run["metrics"]["val/kl_from_base"] / least if least > 0 else math.nan)
    found: dict[str, Any] = {
        "best": best,
        "seeds": len(by_row[best]),
        "gap_closed": mean_of(by_row[best], "val/gap_closed"),
        "success": mean_of(by_row[best], "val/success"),
        "frontier_ratio": mean(ratios),
    }
    if BASELINE in by_row:
        interval = gap_over(by_row[best], by_row[BASELINE])
        found |= {
            "sft_gap_closed": mean_of(by_row[BASELINE], "val/gap_closed"),
            "gap_over_sft": interval.mean,
            "gap_over_sft_low": interval.low,
            "gap_over_sft_high": interval.high,
        }
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found.items()}


def gap_over(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> Interval:
    """Compute how much more of the gap runs close than others do, paired by held-out prompt over common seeds."""
    of_seed, of_other = ({run["seed"]: np.array(run["held_out"]) for run in group} for group in (runs, others))
    common = sorted(seed for seed in of_seed.keys() & of_other.keys() if of_seed[seed].size and of_other[seed].size)
    if not common:
        return Interval(math.nan, math.nan, math.nan)
    first, second = (np.mean([group[seed] for seed in common], axis=0) for group in (of_seed, of_other))
    found, base = difference(second[:, 0], first[:, 0], first[:, 1], first[:, 2]), float(first[:, 1].mean())
    return Interval(found.mean / base, found.low / base, found.high / base)


def mean_of(runs: list[dict[str, Any]], key: str) -> float:
    """Compute the mean of a metric over runs; NaN where one has none."""
    return mean([math.nan if (value := run["metrics"].get(key)) is None else float(value) for run in runs])


def table(runs: list[dict[str, Any]]) -> str:
    """Format a Markdown table of means over seeds, with standard deviations where there are several seeds."""
    heads = ["", "seeds", "success - SFT", *COLUMNS.values()]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for prefix, label in (("base", "base"), ("best_of_n", "best of n")) if runs else ():
        first = {f"val/{k.partition('/')[2]}": v for k, v in runs[0]["metrics"].items() if k.startswith(f"{prefix}/")}
        lines.append(line(label, [first], ""))
    for name in ENTRIES:
        if mine := [run for run in runs if run["row"] == name]:
            lines.append(line(name, [run["metrics"] for run in mine], success_over(runs, name)))
    return "\n".join(lines) + "\n"


def success_over(runs: list[dict[str, Any]], name: str) -> str:
    """Format the mean difference in success from the baseline, over prompts and common seeds."""
    by_seed = [{run["seed"]: run["success_by_prompt"] for run in runs if run["row"] == row} for row in (name, BASELINE)]
    common = sorted(by_seed[0].keys() & by_seed[1].keys())
    if name == BASELINE or not common:
        return ""
    ours, theirs = ([mean(values) for values in zip(*(row[seed] for seed in common), strict=True)] for row in by_seed)
    interval = paired_difference(ours, theirs)
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def mean(values: Sequence[float]) -> float:
    """Compute the arithmetic mean."""
    return sum(values) / len(values)


def line(label: str, metrics: list[dict[str, float | None]], above: str) -> str:
    """Format one row of the table."""
    cells = [label, str(len(metrics)), above, *(cell([m.get(key) for m in metrics]) for key in COLUMNS)]
    return f"| {' | '.join(cells)} |"


def cell(values: list[float | None]) -> str:
    """Format the mean and the standard deviation over seeds."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    middle = mean(numbers)
    digits = 1 if middle > 5 else 3 if middle < 1 else 2
    if len(numbers) == 1:
        return f"{middle:.{digits}f}"
    spread = math.sqrt(sum((x - middle) ** 2 for x in numbers) / (len(numbers) - 1))
    return f"{middle:.{digits}f} ± {spread:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
