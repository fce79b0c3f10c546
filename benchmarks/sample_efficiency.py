"""Sample efficiency: one shot against rounds, and every way of weighing, with equal numbers of rollouts and steps.

    python benchmarks/sample_efficiency.py --quick --json     one shot and rounds, three worlds; minutes on two cores
    python benchmarks/sample_efficiency.py                    five worlds, as in docs/sample_efficiency.md
    python benchmarks/sample_efficiency.py --all              every way of weighing, fewer rollouts, and rare_oracle.py

Finished runs are lines of OUT/results.jsonl and are not repeated; a benchmark that was stopped resumes there. Both
sides of a ratio have the same objective, network, steps and number of rollouts; they differ in the proposal and the
weights of the rollouts.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scipy import stats  # noqa: E402

from benchmarks import rare_oracle, timing  # noqa: E402
from benchmarks.exact_world_sweep import WORLD, run  # noqa: E402
from dinado.rollouts.store_spec import digest  # noqa: E402
from workbench.settings import loader, schema  # noqa: E402
from workbench.settings.methods import PREDICT_R  # noqa: E402

EXPERIMENT = "exact_world_rounds"
ONE_SHOT, ROUNDS = "one shot", "16 rounds, balance"
ONE = ["rollouts.rounds=1"]
FLATTENED = [*ONE, "rollouts.temperature=1.5"]
SCHEMES = {
    ONE_SHOT: [*ONE, "targets.weights=uniform"],
    "one shot, flattened, importance": [*FLATTENED, "targets.weights=importance"],
    "one shot, likelihood": [*ONE, "targets.weights=likelihood"],
    "one shot, flattened, likelihood": [*FLATTENED, "targets.weights=likelihood"],
    "one shot, likelihood, complement": [*ONE, "targets.weights=likelihood", "targets.complement=true"],
    ROUNDS: [],
    "16 rounds, importance": ["targets.weights=importance"],
}
BUDGETS, RARE, RARER = (2000, 8000), -1.5, -3.0
WORLDS, FEW_WORLDS = range(5), range(3)


class Case(NamedTuple):
    """One run of the benchmark."""

    method: str
    scheme: str
    budget: int
    rarity: float
    seed: int

    @property
    def words(self) -> list[str]:
        """The settings on its command line."""
        world = [*WORLD, f"task.seed={self.seed}", f"task.rarity={self.rarity:g}", f"rollouts.per_prompt={self.budget}"]
        return [f"method={self.method}", *world, *SCHEMES[self.scheme]]

    @property
    def key(self) -> str:
        """A digest of every setting, those of the experiment included."""
        return digest(schema.departures(loader.load(EXPERIMENT, self.words).config))


def quick_cases() -> list[Case]:
    """List the runs that the headline needs, on few worlds."""
    rare = [Case(m, s, BUDGETS[-1], RARE, seed) for seed in FEW_WORLDS for m in PREDICT_R for s in (ONE_SHOT, ROUNDS)]
    return rare + [Case(m, ROUNDS, BUDGETS[-1], RARER, seed) for seed in FEW_WORLDS for m in PREDICT_R]


def main_cases() -> list[Case]:
    """List the runs of one shot and rounds on five worlds of either rarity."""
    both = (ONE_SHOT, ROUNDS)
    return [Case(m, s, BUDGETS[-1], r, seed) for r in (RARE, RARER) for seed in WORLDS for m in PREDICT_R for s in both]


def all_cases() -> list[Case]:
    """List the runs of :func:`main_cases`, and of other schemes and a smaller budget on three worlds."""
    others = [scheme for scheme in SCHEMES if scheme not in (ONE_SHOT, ROUNDS)]
    cases = [Case(m, scheme, BUDGETS[-1], RARE, seed) for scheme in others for seed in FEW_WORLDS for m in PREDICT_R]
    cases += [Case(m, s, BUDGETS[0], RARE, seed) for seed in FEW_WORLDS for m in PREDICT_R for s in (ONE_SHOT, ROUNDS)]
    return main_cases() + cases


class Results:
    """The finished runs of a folder, by the digest of their settings."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.file = out / "results.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        self._rows = {row["key"]: row for row in map(json.loads, lines)}

    def fill(self, cases: Sequence[Case], jobs: int) -> None:
        """Run the missing runs, ``jobs`` at a time; one that fails stops the rest."""
        missing = [case for case in cases if case.key not in self._rows]
        with ThreadPoolExecutor(jobs) as pool:
            done = pool.map(lambda case: (case, run(case.words, self.out, EXPERIMENT)), missing)
            for index, (case, numbers) in enumerate(done, 1):
                self._rows[case.key] = row = case._asdict() | numbers | {"key": case.key, "words": case.words}
                with self.file.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                where = f"rarity {case.rarity:g}, world {case.seed}, {case.budget} rollouts"
                distance = f"KL(q*||q) {row['val/kl_to_optimum']:.3f}, {row['seconds']:.0f} s"
                print(f"[{index}/{len(missing)}] {case.method}, {case.scheme}, {where}: {distance}", flush=True)

    def column(self, key: str, cases: Sequence[Case]) -> list[float]:
        """Return one metric of each case."""
        return [self._rows[case.key][key] for case in cases]


def geometric(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the geometric mean with its 95 % interval, from Student's t on the logarithms."""
    logs = [math.log(value) for value in values]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def headline(results: Results, cases: Sequence[Case]) -> dict[str, float]:
    """Compute the ratio of rounds' KL(q*||q) to one shot's, and the gap that rounds close with the rarer oracle."""
    numbers = {}
    for method in PREDICT_R:
        name = method.removeprefix("dinado_")
        rare = [c for c in cases if (c.method, c.budget, c.rarity) == (method, BUDGETS[-1], RARE)]
        once, rounds = (
            results.column("val/kl_to_optimum", [c for c in rare if c.scheme == scheme])
            for scheme in (ONE_SHOT, ROUNDS)
        )
        numbers[f"kl_ratio_{name}"] = geometric([b / a for a, b in zip(once, rounds, strict=True)])[0]
    for method in PREDICT_R:
        rarer = [c for c in cases if (c.method, c.scheme, c.rarity) == (method, ROUNDS, RARER)]
        gaps = results.column("val/gap_closed", rarer)
        numbers[f"gap_closed_rarity3_{method.removeprefix('dinado_')}"] = statistics.fmean(gaps)
    return numbers


def table(results: Results, cases: Sequence[Case]) -> list[dict[str, object]]:
    """Build a line for each scheme, budget and rarity: KL(q*||q) of each method, geometric means with intervals."""
    groups = dict.fromkeys((case.rarity, case.scheme, case.budget) for case in cases)
    lines = []
    for rarity, scheme, budget in groups:
        line: dict[str, object] = {"rarity": f"{rarity:g}", "rollouts": budget, "scheme": scheme}
        for method in PREDICT_R:
            mine = [c for c in cases if c[:4] == (method, scheme, budget, rarity)]
            mean, low, high = geometric(results.column("val/kl_to_optimum", mine))
            line[method] = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(line)
    return lines


def draw(results: Results, cases: Sequence[Case], file: Path) -> None:
    """Draw KL(q*||q) of every world, one shot beside rounds, for both rarities."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "sample_efficiency"
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    for axis, rarity in zip(axes, (RARE, RARER), strict=True):
        for scheme, marker, shift in ((ONE_SHOT, "o", -0.15), (ROUNDS, "D", 0.15)):
            places: list[float] = []
            values: list[float] = []
            for place, method in enumerate(PREDICT_R):
                mine = [c for c in cases if c[:4] == (method, scheme, BUDGETS[-1], rarity)]
                values += results.column("val/kl_to_optimum", mine)
                places += [place + shift] * len(mine)
            axis.scatter(places, values, marker=marker, alpha=0.8, label=scheme)
        axis.set(title=f"rarity {rarity:g}", yscale="log")
        axis.set_xticks(range(len(PREDICT_R)), [method.removeprefix("dinado_") for method in PREDICT_R])
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("KL(q*||q), nats; one mark a world")
    axes[1].legend()
    figure.savefig(file, metadata={"Date": None})


def main() -> int:
    """Run the missing runs, print the tables, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the headline numbers only, on few worlds")
    parser.add_argument("--all", action="store_true", help="every scheme and budget, and a real model")
    parser.add_argument("--jobs", type=timing.whole, default=2, help="runs at a time, a thread each (default 2)")
    parser.add_argument("--json", action="store_true", help="the headline numbers as JSON on the last line")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "sample_efficiency", help="results and their cache")
    parser.add_argument("--figure", type=Path, help="where to draw the picture (not with --quick)")
    arguments = parser.parse_args()
    cases = quick_cases() if arguments.quick else all_cases() if arguments.all else main_cases()
    results = Results(arguments.out.resolve())
    results.fill(cases, arguments.jobs)
    timing.show(table(results, cases))
    if arguments.all:
        print(f"\n{rare_oracle.table(rare_oracle.fill(rare_oracle.SEEDS))}")
    if arguments.figure is not None and not arguments.quick:
        draw(results, cases, arguments.figure)
    return timing.finish(headline(results, cases), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
