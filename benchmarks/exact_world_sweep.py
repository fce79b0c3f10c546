"""A sweep over settings in the exact world: every combination is one ``train.py exact_world`` command.

    python benchmarks/exact_world_sweep.py --quick                       a few short runs: does it work here
    python benchmarks/exact_world_sweep.py --settings default            the table of docs/exact_world.md
    python benchmarks/exact_world_sweep.py --seeds 4 --rarities -1.5     all settings on the hardest world

Finished runs are lines of OUT/results.jsonl and are not repeated; a sweep that was stopped resumes there.
A setting that a method does not read is skipped for that method.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dinado.errors import ConfigError  # noqa: E402
from workbench.settings import loader  # noqa: E402
from workbench.settings.methods import PREDICT_R  # noqa: E402

SETTINGS: dict[str, list[str]] = {
    "default": [],
    "token CE alone": ["objective.oracle.token_ce=1", "objective.oracle.terminal_ce=0"],
    "terminal CE alone": ["objective.oracle.token_ce=0"],
    "token CE 0.3": ["objective.oracle.token_ce=0.3"],
    "regulariser 0": ["objective.consistency.weight=0"],
    "regulariser 0.25": ["objective.consistency.weight=0.25"],
    "regulariser 5": ["objective.consistency.weight=5"],
    "predicted first": ["objective.consistency.direction=predicted_first"],
    "detach expected": ["objective.consistency.detach=expected"],
    "mean norm": ["objective.norm.kind=mean"],
    "overflow 0.1": ["objective.oracle.overflow=0.1"],
    "root from store": ["targets.root=store"],
    "positives 25 %": ["targets.positives_share=0.25"],
    "lr 1e-3": ["optim.lr=1e-3"],
    "weight decay 0.01": ["optim.weight_decay=0.01"],
    "weight decay 3": ["optim.weight_decay=3"],
    "batch 256": ["optim.batch_size=256", "optim.rows_per_prompt=256"],
    "width 32": ["network.width=32"],
}
WORLD = ["task.vocab_size=12", "task.length=10", "task.required=[3,7]"]
QUICK = ["optim.steps=40", "rollouts.per_prompt=1000", "eval.exact_samples=200", "eval.samples_per_prompt=200"]
KEPT = (
    "val/gap_closed",
    "val/kl_to_optimum",
    "val/kl_to_optimum_se",
    "val/success",
    "reg/forward_consistency",
    "weights/effective_positives",
    "base/kl_to_optimum",
)


def combinations(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yield the names of every run in the table and its settings; skip settings that contradict the method."""
    for setting, rarity, method, seed, run_seed in itertools.product(
        args.settings, args.rarities, args.methods, args.seeds, args.run_seeds
    ):
        names = {"setting": setting, "rarity": rarity, "method": method, "task.seed": seed, "seed": run_seed}
        words = [f"method={method}", *WORLD, f"task.seed={seed}", f"task.rarity={rarity}", f"seed={run_seed}"]
        words += SETTINGS[setting] + (QUICK if args.quick else []) + args.override
        try:
            loader.load("exact_world", words)
        except ConfigError:
            if not SETTINGS[setting]:
                raise
            continue
        yield names, words


def run(words: list[str], out: Path, experiment: str = "exact_world") -> dict[str, float]:
    """Run one training in its own process; raise RuntimeError with the end of its output if it fails."""
    places = [f"runs={out / 'runs'}", f"data.cache={out / 'cache'}", "trainer.progress=false"]
    command = [sys.executable, "train.py", experiment, *words, *places, "--json"]
    start = time.monotonic()
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {key: result[key] for key in KEPT} | {"seconds": time.monotonic() - start}


def table(results: list[dict[str, Any]]) -> str:
    """Format a Markdown table: gap closed in each world, and the largest regularisation term over the worlds."""
    seeds = sorted({row["task.seed"] for row in results})
    lines = [
        f"| rarity | setting | method | {' | '.join(f'seed {seed}' for seed in seeds)} | lowest | consistency |",
        "|---" * (len(seeds) + 5) + "|",
    ]
    groups: dict[tuple[float, str, str], list[dict[str, Any]]] = {}
    for row in results:
        groups.setdefault((row["rarity"], row["setting"], row["method"]), []).append(row)
    for (rarity, setting, method), rows in groups.items():
        gaps = {seed: [row["val/gap_closed"] for row in rows if row["task.seed"] == seed] for seed in seeds}
        cells = [f"{min(values):.3f}" if values else "" for values in gaps.values()]
        lowest = min(row["val/gap_closed"] for row in rows)
        consistency = max(row["reg/forward_consistency"] for row in rows)
        lines.append(
            f"| {rarity:g} | {setting} | {method} | " + " | ".join(cells) + f" | {lowest:.3f} | {consistency:.3f} |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=PREDICT_R, default=list(PREDICT_R))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="task.seed: which world")
    parser.add_argument("--run-seeds", nargs="+", type=int, default=[0], help="seed: initialisation and batch order")
    parser.add_argument("--rarities", nargs="+", type=float, default=[0.0, -1.5])
    parser.add_argument("--override", nargs="*", default=[], help="further settings for every run")
    parser.add_argument("--quick", action="store_true", help="two settings, one world, 40 steps")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "exact_world_sweep", help="results and their cache")
    args = parser.parse_args()
    if args.quick:
        args.settings, args.seeds, args.rarities = ["default", "regulariser 0"], [0], [0.0]
    return args


def main() -> None:
    """Run the missing runs, then print the table."""
    args = parse()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.jsonl"
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    finished = {json.dumps(row["words"]): row for row in known}
    todo = list(combinations(args))
    results = []
    for index, (names, words) in enumerate(todo, 1):
        row = finished.get(json.dumps(words))
        if row is None:
            row = names | run(words, out) | {"words": words}
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        results.append(row)
        print(
            f"[{index}/{len(todo)}] " + " ".join(f"{key}={value}" for key, value in names.items()) + f": gap closed "
            f"{row['val/gap_closed']:.3f}, {row['seconds']:.0f} s",
            flush=True,
        )
    print(table(results))
    if args.json:
        print(json.dumps({"results": [{k: v for k, v in row.items() if k != "words"} for row in results]}))


if __name__ == "__main__":
    main()
