"""A rare oracle on a real model: one shot against rounds, with equal numbers of rollouts and optimiser steps.

    python benchmarks/rare_oracle.py                three seeds; an hour and a half on one core
    python benchmarks/rare_oracle.py --seeds 0,2    some of them; several of these may run side by side

It runs ``train.py rare_colour`` for every scheme and seed (of the rollouts too), skips runs that are in
docs/results/rare_colour.json, and writes that file and the table beside it after every run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import timing  # noqa: E402
from dinado.metrics.intervals import rate_interval  # noqa: E402
from dinado.rollouts.store_spec import digest  # noqa: E402
from workbench.settings import loader, schema  # noqa: E402

EXPERIMENT = "rare_colour"
RESULTS = ROOT / "docs" / "results" / "rare_colour.json"
ONE_SHOT, ROUNDS = "one shot", "4 rounds, balance"
SCHEMES = {ONE_SHOT: ["rollouts.rounds=1", "targets.weights=uniform"], ROUNDS: []}
KEPT = (
    "val/success",
    "val/kl_from_base",
    "val/distinct_2",
    "val/truncated",
    "base/success",
    "rollouts/success",
    "rollouts/tokens",
    "weights/effective_positives",
)
SEEDS = range(3)
NOT_THE_OUTCOME = ("runs", "data.cache", "data.root", "data.states", "trainer.progress", "trainer.devices", "logging.")


def words_of(scheme: str, seed: int) -> list[str]:
    """Return the settings of one run; every seed has its own rollouts."""
    return [f"seed={seed}", f"rollouts.seed={seed}", *SCHEMES[scheme]]


def key_of(scheme: str, seed: int) -> str:
    """Compute a digest of every setting that decides the outcome, those of the experiment included."""
    found = schema.departures(loader.load(EXPERIMENT, words_of(scheme, seed)).config)
    return digest({key: value for key, value in found.items() if not key.startswith(NOT_THE_OUTCOME)})


def stored() -> list[dict[str, Any]]:
    """Return the runs measured so far, those with other settings included."""
    return json.loads(RESULTS.read_text())["runs"] if RESULTS.is_file() else []


def store(run: dict[str, Any]) -> None:
    """Add a run and rewrite the table; a lock keeps processes side by side from losing each other's runs."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(RESULTS) + ".lock"):
        runs = [*stored(), run]
        RESULTS.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(table(current(runs)))


def current(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select the runs that were made with the current settings."""
    return [run for run in runs if run["key"] == key_of(run["scheme"], run["seed"])]


def outcome(scheme: str, seed: int, metrics: dict[str, Any], minutes: float) -> dict[str, Any]:
    """Build a row of the results from the output of ``train.py --json`` and the run's samples."""
    samples = ROOT / metrics["run_dir"] / "samples" / "after.jsonl"
    scores: dict[str, list[float]] = {}
    for record in map(json.loads, samples.read_text(encoding="utf-8").splitlines()):
        scores.setdefault(record["prompt"], []).append(record["score"])
    return {
        "scheme": scheme,
        "seed": seed,
        "key": key_of(scheme, seed),
        "command": " ".join(["python train.py", EXPERIMENT, *words_of(scheme, seed)]),
        "minutes": round(minutes, 1),
        **{key: metrics[key] for key in KEPT},
        "success_by_prompt": [statistics.fmean(values) for values in scores.values()],
    }


def run_one(scheme: str, seed: int) -> dict[str, Any]:
    """Run one training with its evaluation; return its row of the results."""
    command = [sys.executable, "train.py", EXPERIMENT, *words_of(scheme, seed), "trainer.progress=false", "--json"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return outcome(scheme, seed, json.loads(done.stdout.splitlines()[-1]), (time.monotonic() - started) / 60)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Format a Markdown table: a line per scheme, means over seeds, the interval of success over prompts."""
    heads = ["", "seeds", "success", "of each seed", "KL(q\\|\\|p)", "distinct-2", "cut off", "tokens sampled"]
    heads += ["of the rollouts accepted", "effective positives"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    if runs:
        base = [run["base/success"] for run in runs if run["scheme"] == runs[0]["scheme"]]
        lines.append(f"| base | {len(base)} | {statistics.fmean(base):.3f} |{' |' * 7}")
    for scheme in SCHEMES:
        mine = sorted((run for run in runs if run["scheme"] == scheme), key=lambda run: run["seed"])
        if not mine:
            continue
        interval = rate_interval(by_prompt(mine), 16 * len(mine))
        cells = [scheme, str(len(mine)), f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"]
        cells.append(", ".join(f"{run['val/success']:.3f}" for run in mine))
        for key, form in (
            ("val/kl_from_base", ".1f"),
            ("val/distinct_2", ".2f"),
            ("val/truncated", ".2f"),
            ("rollouts/tokens", ",.0f"),
            ("rollouts/success", ".3f"),
            ("weights/effective_positives", ".1f"),
        ):
            cells.append(format(statistics.fmean(run[key] for run in mine), form))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_prompt(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Compute the success of every held-out prompt, averaged over runs."""
    return [statistics.fmean(values) for values in zip(*(run["success_by_prompt"] for run in runs), strict=True)]


def headline(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Compute the ratio of rounds' success to one shot's, over common seeds, with its interval over prompts."""
    seeds = [{run["seed"]: run for run in runs if run["scheme"] == scheme} for scheme in (ROUNDS, ONE_SHOT)]
    common = sorted(seeds[0].keys() & seeds[1].keys())
    if not common:
        return {}
    rounds, once = ([mine[seed] for seed in common] for mine in seeds)
    top, bottom = (np.array(by_prompt(runs)) for runs in (rounds, once))
    if not bottom.any():
        return {}
    interval = stats.bootstrap(
        (top, bottom),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    pairs = list(zip(rounds, once, strict=True))
    return {
        "success_ratio": float(top.mean() / bottom.mean()),
        "success_ratio_low": float(interval.low),
        "success_ratio_high": float(interval.high),
        "success_ratio_lowest_seed": min(a["val/success"] / max(b["val/success"], 1e-9) for a, b in pairs),
        "token_ratio": statistics.fmean(a["rollouts/tokens"] / b["rollouts/tokens"] for a, b in pairs),
        "seeds": float(len(common)),
    }


def seeds_of(text: str) -> list[int]:
    """Parse seeds: ``3`` means 0, 1, 2 and ``0,2`` means itself; raise ValueError for anything else."""
    return [int(part) for part in text.split(",") if part] if "," in text else list(range(int(text)))


def fill(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Run the missing runs, one after the other, and return all runs."""
    todo = [(scheme, seed) for seed in seeds for scheme in SCHEMES]
    for number, (scheme, seed) in enumerate(todo, 1):
        if key_of(scheme, seed) in {run["key"] for run in stored()}:
            continue
        print(f"[{number}/{len(todo)}] {scheme}, seed {seed}", flush=True)
        store(run_one(scheme, seed))
    return current(stored())


def main() -> int:
    """Run the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, default="3", help="how many, from 0 on, or a list such as 0,2 or 1,")
    parser.add_argument("--json", action="store_true", help="the headline numbers as JSON on the last line")
    arguments = parser.parse_args()
    runs = fill(arguments.seeds)
    print(table(runs))
    return timing.finish(headline(runs), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
