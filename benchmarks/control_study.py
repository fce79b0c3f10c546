"""Control on a real model: every method on the same rollouts and the same number of optimiser steps.

    python benchmarks/control_study.py                        all methods, three seeds; hours on a laptop
    python benchmarks/control_study.py --seeds 1 --only sft,dinado_hard
    python benchmarks/control_study.py optim.steps=40         settings for every run

It runs ``train.py commongen_smollm2`` once for each method and seed, skips runs that are in the results file, and
writes docs/results/commongen_smollm2.json and .md after every run. A row's difference in success from fine-tuning on
accepted rollouts is paired by prompt, over the seeds that both have, with its 95 % interval over prompts.
Several of these may run side by side with different --only or --seeds: results are read again before they are written.
A run is identified by its row, its seed and a digest of all settings that decide its outcome, those of the experiment
included.
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

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dinado.evaluation.measures import measure  # noqa: E402
from dinado.metrics.intervals import paired_difference  # noqa: E402
from dinado.rollouts.store_spec import digest  # noqa: E402
from workbench.settings import schema  # noqa: E402
from workbench.settings.loader import load  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "commongen_smollm2.json"
EXPERIMENT = "commongen_smollm2"

PUBLISHED = (
    "objective.oracle.token_ce=0 objective.oracle.terminal_ce=1 objective.oracle.value_ce=0 "
    "objective.consistency.weight=1 objective.consistency.detach=none objective.consistency.divergence=bernoulli "
    "objective.lookahead.weight=0 objective.path.weight=0 objective.norm.kind=linf "
    "objective.masks=official targets.root=learned targets.positives_share=0 optim.norm_steps=0"
)
BASELINE = "sft on positives"
ENTRIES = {
    "sft on references": "method=sft sft_data=references",
    BASELINE: "method=sft",
    "sft on positives 80 steps": "method=sft optim.steps=80",
    "nado": "method=nado",
    "dinado_hard": "method=dinado_hard",
    "dinado_soft": "method=dinado_soft",
    "dinado_merge": "method=dinado_merge",
    "published dinado_soft": f"method=dinado_soft {PUBLISHED} network.head=free network.pointer=false network.taps=[1]",
    "published dinado_merge": f"method=dinado_merge {PUBLISHED} objective.norm.input=base objective.norm.taps=[1]",
}
SHOWN = "success coverage kl_from_base kl_to_optimum r_auc_within_prompt_half bleu4 rouge_l cider distinct_2 truncated"
COLUMNS = {f"val/{name}": measure(f"val/{name}").label.replace("|", "\\|") for name in SHOWN.split()}


def main() -> int:
    """Run the missing runs, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds, default="3", help="how many, from 0 on, or a list such as 0,2 or 1,")
    parser.add_argument("--only", default="", help="comma-separated rows of the table")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object at the end")
    parser.add_argument("settings", nargs="*", help="key=value for every run")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.only.split(",") if name.strip()] or list(ENTRIES)
    if unknown := [name for name in names if name not in ENTRIES]:
        parser.error(f"unknown row {unknown[0]!r}; there are: {', '.join(ENTRIES)}")
    todo = [(name, seed) for seed in arguments.seeds for name in names]
    settings_of = {name: " ".join([entry, *arguments.settings]) for name, entry in ENTRIES.items()}
    digest_of = {name: digest_of_settings(settings) for name, settings in settings_of.items()}
    for number, (name, seed) in enumerate(todo, 1):
        settings = settings_of[name]
        if (name, seed, digest_of[name]) in {(run["row"], run["seed"], run["config"]) for run in stored()}:
            continue
        print(f"[{number}/{len(todo)}] {name}, seed {seed}", flush=True)
        started = time.monotonic()
        measured = run_one(settings.split(), seed)
        minutes = round((time.monotonic() - started) / 60, 1)
        run = {"row": name, "seed": seed, "settings": settings, "config": digest_of[name], "minutes": minutes}
        store(run | measured, digest_of)
    runs = [run for run in stored() if run["config"] == digest_of[run["row"]]]
    print(table(runs))
    if arguments.json:
        print(json.dumps(runs))
    return 0


def seeds(text: str) -> list[int]:
    """Parse seeds: ``3`` means 0, 1, 2 and ``0,2`` means itself; raise ValueError for anything else."""
    return [int(part) for part in text.split(",") if part] if "," in text else list(range(int(text)))


def stored() -> list[dict[str, Any]]:
    """Return the runs measured so far."""
    return json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []


def digest_of_settings(settings: str) -> str:
    """Compute a digest of every setting of the experiment that decides the outcome of a run.

    It covers only settings that differ from their defaults, so that a new setting that changes nothing keeps it equal.
    """
    kept = schema.departures(load(EXPERIMENT, settings.split()).config)
    ways = ("seed", "runs", "trainer.", "logging.", "data.cache", "data.root", "data.states")
    return digest({key: value for key, value in kept.items() if not key.startswith(ways)})


def store(run: dict[str, Any], digest_of: dict[str, str]) -> None:
    """Add a run, and rewrite the table of the rows with these settings."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(RESULTS) + ".lock"):
        runs = [*stored(), run]
        RESULTS.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(table([r for r in runs if r["config"] == digest_of[r["row"]]]))


def run_one(settings: list[str], seed: int) -> dict[str, Any]:
    """Run one training; return its final metrics and the success of every held-out prompt."""
    command = [sys.executable, "train.py", EXPERIMENT, f"seed={seed}", *settings, "trainer.progress=false", "--json"]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {finished.returncode}")
    metrics = json.loads(finished.stdout.splitlines()[-1])
    samples = ROOT / metrics.pop("run_dir") / "samples" / "after.jsonl"
    scores: dict[str, list[float]] = {}
    for record in map(json.loads, samples.read_text(encoding="utf-8").splitlines()):
        scores.setdefault(record["prompt"], []).append(record["score"])
    shown = " ".join(["python", *command[1:]])
    return {"command": shown, "metrics": metrics, "success_by_prompt": [mean(values) for values in scores.values()]}


def table(runs: list[dict[str, Any]]) -> str:
    """Format a Markdown table of means over seeds, with standard deviations where there are several seeds."""
    heads = ["", "seeds", "success - SFT", *COLUMNS.values()]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for prefix, label in (("base", "base"), ("best_of_n", "best of n")) if runs else ():
        first = {f"val/{k.partition('/')[2]}": v for k, v in runs[0]["metrics"].items() if k.startswith(f"{prefix}/")}
        lines.append(line(label, [first], ""))
    for name in ENTRIES:
        if mine := [run for run in runs if run["row"] == name]:
            lines.append(line(name, [run["metrics"] for run in mine], difference(runs, name)))
    return "\n".join(lines) + "\n"


def difference(runs: list[dict[str, Any]], name: str) -> str:
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
