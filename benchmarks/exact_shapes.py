"""Exact worlds of shapes that no experiment ships, solved in rounds with the settings of ``exact_world_rounds``.

    python benchmarks/exact_shapes.py                                          the runs, then the table
    python benchmarks/exact_shapes.py --print docs/results/exact_shapes.jsonl  the table of finished runs

Every shape is run with every method and several seeds of the rollouts and of the initialisation. Finished runs are
lines of OUT/results.jsonl, identified by a digest of all their settings, and are not repeated; a benchmark that was
stopped resumes there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import timing  # noqa: E402
from benchmarks.exact_world_sweep import cell, read, run  # noqa: E402
from dinado.rollouts.store_spec import digest  # noqa: E402
from workbench.settings import loader, schema  # noqa: E402
from workbench.settings.methods import PREDICT_R  # noqa: E402

EXPERIMENT = "exact_world_rounds"


class Shape(NamedTuple):
    """A world: its size, its oracle and the seed of its base."""

    vocab_size: int
    length: int
    required: tuple[int, ...]
    avoided: tuple[int, ...]
    rarity: float
    seed: int

    @property
    def words(self) -> list[str]:
        """Its settings on a command line."""
        return [f"task.{name}={list(v) if isinstance(v, tuple) else f'{v:g}'}" for name, v in self._asdict().items()]


SHAPES = (
    Shape(9, 12, (1, 2, 3), (4,), -2.0, 51),
    Shape(9, 12, (2, 5, 8), (1,), -2.0, 52),
    Shape(7, 10, (2, 5), (3,), -1.5, 7),
    Shape(12, 9, (1, 4, 9), (), -1.0, 23),
)


def words_of(shape: Shape, method: str, seed: int) -> list[str]:
    """Return the settings of a run; the seed is that of the rollouts too."""
    return [f"method={method}", *shape.words, f"seed={seed}", f"rollouts.seed={seed}"]


def key_of(words: list[str]) -> str:
    """Compute a digest of every setting of a run, those of the experiment included."""
    return digest(schema.departures(loader.load(EXPERIMENT, words).config))


def combinations(methods: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yield the names of every run in the table and its settings."""
    for seed, shape, method in itertools.product(seeds, SHAPES, methods):
        yield {"shape": shape._asdict(), "method": method, "seed": seed}, words_of(shape, method, seed)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format a Markdown table: a line for each shape, the gap closed by each method over the seeds."""
    heads = ["tokens", "length", "required", "avoided", "rarity", "world", "base succeeds", *PREDICT_R, "least success"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for shape in dict.fromkeys(json.dumps(row["shape"]) for row in rows):
        mine = [row for row in rows if json.dumps(row["shape"]) == shape]
        cells = [", ".join(map(str, v)) if isinstance(v, list) else f"{v:g}" for v in json.loads(shape).values()]
        cells.append(f"{100 * math.exp(-mine[0]['base/kl_to_optimum']):.2g} %")
        cells += [cell([row["val/gap_closed"] for row in mine if row["method"] == name]) for name in PREDICT_R]
        lines.append(f"| {' | '.join(cells)} | {min(row['val/success'] for row in mine):.2f} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=PREDICT_R, default=list(PREDICT_R))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of rollouts and initialisation")
    parser.add_argument("--jobs", type=timing.whole, default=2, help="runs at a time, a thread each (default 2)")
    parser.add_argument("--print", type=Path, metavar="FILE", help="print the table of these results and run nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "exact_shapes", help="results and their cache")
    return parser.parse_args()


def main() -> int:
    """Run the missing runs, then print the table."""
    args = parse()
    if args.print:
        print(table(read(args.print)))
        return 0
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.jsonl"
    finished = {row["key"]: row for row in read(file)}
    todo = [(names, words, key_of(words)) for names, words in combinations(args.methods, args.seeds)]
    missing = [one for one in todo if one[2] not in finished]
    with ThreadPoolExecutor(args.jobs) as pool:
        done = pool.map(lambda one: one[0] | run(one[1], out, EXPERIMENT) | {"words": one[1], "key": one[2]}, missing)
        for index, row in enumerate(done, 1):
            finished[row["key"]] = row
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            said = f"world {row['shape']['seed']}, {row['method']}, seed {row['seed']}"
            gap = f"gap closed {row['val/gap_closed']:.3f}, {row['seconds']:.0f} s"
            print(f"[{index}/{len(missing)}] {said}: {gap}", flush=True)
    print(table([finished[key] for _, _, key in todo]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
