"""Control on a real model: every method on the same rollouts and the same number of optimiser steps.

    python benchmarks/control_study.py                        all methods, three seeds; hours on a laptop
    python benchmarks/control_study.py --seeds 1 --only sft,dinado_hard
    python benchmarks/control_study.py optim.steps=40         settings for every run

Runs ``train.py commongen_smollm2`` once for each method and seed, skips what the results file holds already, and
writes docs/results/commongen_smollm2.json and .md after every run.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "commongen_smollm2.json"
EXPERIMENT = "commongen_smollm2"

PUBLISHED = (
    "objective.token_ce=0 objective.terminal_ce=1 objective.value_ce=0 objective.regulariser=1 objective.detach=none "
    "objective.consistency=bernoulli objective.norm=linf objective.masks=official targets.root=learned "
    "targets.positives_share=0 optim.norm_steps=0"
)
ENTRIES = {
    "sft on references": "method=sft sft_data=references",
    "sft on positives": "method=sft",
    "nado": "method=nado",
    "dinado_hard": "method=dinado_hard",
    "dinado_soft": "method=dinado_soft",
    "dinado_merge": "method=dinado_merge",
    "dinado_soft, published": f"method=dinado_soft {PUBLISHED} network.head=free network.taps=[1]",
    "dinado_merge, published": f"method=dinado_merge {PUBLISHED} objective.norm_input=base objective.norm_taps=[1]",
}
COLUMNS = {
    "val/success": "success",
    "val/coverage": "coverage",
    "val/kl_from_base": "KL(q\\|\\|p)",
    "val/kl_to_optimum": "KL(q*\\|\\|q)",
    "val/r_auc_within_prompt_half": "R AUC, halfway",
    "val/bleu4": "BLEU-4",
    "val/rouge_l": "ROUGE-L",
    "val/cider": "CIDEr",
    "val/distinct_2": "distinct-2",
    "val/truncated": "cut off",
}


def main() -> int:
    """Run what is missing, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N - 1")
    parser.add_argument("--only", default="", help="comma-separated rows of the table")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object at the end")
    parser.add_argument("settings", nargs="*", help="key=value for every run")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.only.split(",") if name.strip()] or list(ENTRIES)
    if unknown := [name for name in names if name not in ENTRIES]:
        parser.error(f"unknown row {unknown[0]!r}; there are: {', '.join(ENTRIES)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"command": "", "runs": []}
    results["command"] = f"python benchmarks/control_study.py {' '.join(arguments.settings)}".strip()
    done = {(run["row"], run["seed"], run["settings"]) for run in results["runs"]}
    todo = [(name, seed) for seed in range(arguments.seeds) for name in names]
    for number, (name, seed) in enumerate(todo, 1):
        settings = " ".join([ENTRIES[name], *arguments.settings])
        if (name, seed, settings) in done:
            continue
        print(f"[{number}/{len(todo)}] {name}, seed {seed}", flush=True)
        started = time.monotonic()
        metrics = run_one(settings.split(), seed)
        minutes = (time.monotonic() - started) / 60
        results["runs"].append(
            {"row": name, "seed": seed, "settings": settings, "minutes": round(minutes, 1), "metrics": metrics}
        )
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(table(results["runs"]))
    print(table(results["runs"]))
    if arguments.json:
        print(json.dumps(results))
    return 0


def run_one(settings: list[str], seed: int) -> dict[str, float | None]:
    """Final metrics of one training run."""
    command = [sys.executable, "train.py", EXPERIMENT, f"seed={seed}", *settings, "trainer.progress=false", "--json"]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {finished.returncode}")
    metrics = json.loads(finished.stdout.splitlines()[-1])
    return {key: value for key, value in metrics.items() if key != "run_dir"}


def table(runs: list[dict]) -> str:
    """Markdown: mean over seeds, and the standard deviation over seeds where there are several."""
    lines = [f"| | seeds | {' | '.join(COLUMNS.values())} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    if runs:
        for prefix, label in (("base", "base"), ("best_of_n", "best of n")):
            lines.append(
                line(
                    label,
                    [
                        {f"val/{k.split('/')[1]}": v for k, v in r["metrics"].items() if k.startswith(f"{prefix}/")}
                        for r in runs[:1]
                    ],
                )
            )
    for name in ENTRIES:
        metrics = [run["metrics"] for run in runs if run["row"] == name]
        if metrics:
            lines.append(line(name, metrics))
    return "\n".join(lines) + "\n"


def line(label: str, metrics: list[dict[str, float | None]]) -> str:
    """One row of the table."""
    return f"| {label} | {len(metrics)} | {' | '.join(cell([m.get(key) for m in metrics]) for key in COLUMNS)} |"


def cell(values: list[float | None]) -> str:
    """Mean, and spread over seeds."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    mean = sum(numbers) / len(numbers)
    digits = 1 if mean > 5 else 3 if mean < 1 else 2
    if len(numbers) == 1:
        return f"{mean:.{digits}f}"
    spread = math.sqrt(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
