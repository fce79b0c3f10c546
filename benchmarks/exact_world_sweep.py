"""A sweep over settings in the exact world: every combination is one ``train.py exact_world`` command.

    python benchmarks/exact_world_sweep.py --quick                       a few short runs: does it work here
    python benchmarks/exact_world_sweep.py --settings default            the tables of docs/exact_world.md
    python benchmarks/exact_world_sweep.py --seeds 4 --rarities -1.5     all settings on the hardest world
    python benchmarks/exact_world_sweep.py --print docs/results/exact_world.jsonl     the tables of finished runs

Every combination is run with several seeds of the rollouts, since a rare oracle's accepted ones are few.
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
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dinado.errors import ConfigError  # noqa: E402
from workbench.settings import loader  # noqa: E402
from workbench.settings.methods import PREDICT_R  # noqa: E402

SETTINGS: dict[str, list[str]] = {
    "default": [],
    "as published": ["objective.masks=official"],
    "token CE alone": ["objective.oracle.token_ce=1", "objective.oracle.terminal_ce=0"],
    "terminal CE alone": ["objective.oracle.token_ce=0"],
    "token CE 0.3": ["objective.oracle.token_ce=0.3"],
    "consistency 0": ["objective.consistency.weight=0"],
    "consistency 0.25": ["objective.consistency.weight=0.25"],
    "consistency 5": ["objective.consistency.weight=5"],
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
    for rollout_seed, setting, rarity, method, seed in itertools.product(
        args.rollout_seeds, args.settings, args.rarities, args.methods, args.seeds
    ):
        names = {
            "setting": setting,
            "rarity": rarity,
            "method": method,
            "task.seed": seed,
            "rollouts.seed": rollout_seed,
        }
        words = [f"method={method}", *WORLD, f"task.seed={seed}", f"task.rarity={rarity}"]
        words += [f"rollouts.seed={rollout_seed}", f"seed={rollout_seed}"]
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
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"} | dict(os.environ)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {key: result[key] for key in KEPT} | {"seconds": time.monotonic() - start}


def tables(results: list[dict[str, Any]]) -> str:
    """Format a Markdown table for each setting and rarity: the gap closed in each world, over the rollouts' seeds."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in results:
        groups.setdefault((row["setting"], row["rarity"]), []).append(row)
    return "\n\n".join(table(setting, rarity, rows) for (setting, rarity), rows in groups.items())


def table(setting: str, rarity: float, rows: list[dict[str, Any]]) -> str:
    """Format the table of one setting and rarity: means over seeds of the rollouts, with the lowest and the highest."""
    worlds = sorted({row["task.seed"] for row in rows})
    heads = ["method", *(f"world {world}" for world in worlds), "mean KL(q*\\|\\|q)", "largest consistency"]
    lines = [f"{setting}, rarity {rarity:g}:", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method in [name for name in PREDICT_R if any(row["method"] == name for row in rows)]:
        mine = [row for row in rows if row["method"] == method]
        cells = [cell([row["val/gap_closed"] for row in mine if row["task.seed"] == world]) for world in worlds]
        kl = sum(row["val/kl_to_optimum"] for row in mine) / len(mine)
        term = max(row["reg/forward_consistency"] for row in mine)
        lines.append(f"| {method} | {' | '.join(cells)} | {kl:.3f} | {term:.4f} |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """Format the mean of some values, with the lowest and the highest if there are several."""
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def read(file: Path) -> list[dict[str, Any]]:
    """Read the rows of finished runs; none where there is no such file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=PREDICT_R, default=list(PREDICT_R))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="task.seed: which world")
    parser.add_argument(
        "--rollout-seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        help="rollouts.seed, and seed: order and initialisation",
    )
    parser.add_argument("--rarities", nargs="+", type=float, default=[0.0, -1.5])
    parser.add_argument("--override", nargs="*", default=[], help="further settings for every run")
    parser.add_argument("--quick", action="store_true", help="two settings, one world, 40 steps")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, of one thread each")
    parser.add_argument("--print", type=Path, metavar="FILE", help="print the tables of these results and run nothing")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "exact_world_sweep", help="results and their cache")
    args = parser.parse_args()
    if args.quick:
        args.settings, args.seeds, args.rarities = ["default", "consistency 0"], [0], [0.0]
        args.rollout_seeds = [0]
    return args


def main() -> None:
    """Run the missing runs, then print the table."""
    args = parse()
    if args.print:
        print(tables(read(args.print)))
        return
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.jsonl"
    finished = {json.dumps(row["words"]): row for row in read(file)}
    todo, done, writing = list(combinations(args)), itertools.count(1), threading.Lock()

    def result(names: dict[str, Any], words: list[str]) -> dict[str, Any]:
        row = finished.get(json.dumps(words))
        new = row is None
        if row is None:
            row = names | run(words, out) | {"words": words}
        with writing:
            if new:
                with file.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
            said = " ".join(f"{key}={value}" for key, value in names.items())
            gap = f"gap closed {row['val/gap_closed']:.3f}, {row['seconds']:.0f} s"
            print(f"[{next(done)}/{len(todo)}] {said}: {gap}", flush=True)
        return row

    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda one: result(*one), todo))
    print(tables(results))
    if args.json:
        print(json.dumps({"results": [{k: v for k, v in row.items() if k != "words"} for row in results]}))


if __name__ == "__main__":
    main()
