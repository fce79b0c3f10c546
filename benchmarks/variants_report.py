"""A comparison of the four variants: the regularisation term over training, KL to the optimum, success, rollouts.

    python benchmarks/variants_report.py              exact world and SmolLM2-135M, five seeds each; two hours
    python benchmarks/variants_report.py --quick      the exact world alone, a quarter of an hour
    python benchmarks/variants_report.py --records docs/results/variants.jsonl    tables and picture of these runs

It runs the sweeps ``variants_rollouts_exact``, ``variants_published`` and ``variants_quickstart`` (finished trials are
not repeated) and writes docs/results/variants.jsonl, a record of every run, from which the tables beside it and
docs/variants.svg are made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import timing  # noqa: E402
from dinado.evaluation.measures import measure  # noqa: E402
from workbench.report.run_reader import Run, find_runs, read_run  # noqa: E402
from workbench.report.statistics import Summary, summarise  # noqa: E402
from workbench.settings.methods import METHODS, PREDICT_R  # noqa: E402

SHOWN = ("kl_to_optimum", "gap_closed", "success", "kl_from_base", "r_calibration_error")
NUMBERS = {measure(f"val/{name}").label.replace("|", "\\|"): f"val/{name}" for name in SHOWN}
TERM, KL, LIMIT = "reg/forward_consistency", "val/kl_to_optimum", 0.5
CURVES = {"curve": TERM, "kl_curve": KL}
"""Names of the curves in a record."""
ROUNDING = 1e-5
"""Rounding error in nats, up to which Hard is consistent by construction."""
STYLES = {
    "nado": ("#b45309", "-"),
    "dinado_soft": ("#1d4ed8", "--"),
    "dinado_merge": ("#047857", "-."),
    "dinado_hard": ("#9d174d", ":"),
}


@dataclass(frozen=True, eq=False)
class Part:
    """One sweep of the report.

    Attributes:
        sweep: name of its file.
        title: heading of its section.
        full: the setting of the runs with all rollouts; the other runs show the effect of fewer.
    """

    sweep: str
    title: str
    full: Mapping[str, str]


EXACT = Part("variants_rollouts_exact", "Exact world, 400 steps", {"rollouts.per_prompt": "8000"})
PUBLISHED = Part("variants_published", "SmolLM2-135M, objectives as published, 32 steps", {})
OURS = Part("variants_quickstart", "SmolLM2-135M, the quickstart's recipes", {})
PARTS = (EXACT, PUBLISHED, OURS)
RECORDS = ROOT / "docs" / "results" / "variants.jsonl"
WHICH = ("method", "seed", "rollouts.seed", "rollouts.per_prompt")


def main() -> int:
    """Run the missing trials and write the report."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="the exact world alone; nothing in docs/ is changed")
    options.add_argument("--jobs", type=timing.whole, default=2, help="trials at once")
    options.add_argument("--sweeps", type=Path, default=ROOT / "runs" / "sweeps", help="read these, run nothing")
    options.add_argument("--records", type=Path, help="make tables and picture of these records, run nothing")
    arguments = options.parse_args()
    if arguments.records:
        write(read_records(arguments.records))
        return 0
    parts = [EXACT] if arguments.quick else PARTS
    if arguments.sweeps == options.get_default("sweeps"):
        for part in parts:
            command = [sys.executable, "sweep.py", part.sweep, "--jobs", str(arguments.jobs)]
            if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
                return code
    found = {part: runs_of(arguments.sweeps / part.sweep) for part in parts}
    lines = [json.dumps({"sweep": part.sweep, **summary_of(run)}) for part, runs in found.items() for run in runs]
    if arguments.quick:
        print(text_of({part: [from_record(json.loads(line)) for line in lines] for part in parts}))
        return 0
    RECORDS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write(read_records(RECORDS))
    return 0


def write(found: Mapping[Part, Sequence[Run]]) -> None:
    """Write the tables and the picture."""
    text = text_of(found)
    print(text)
    RECORDS.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(found, ROOT / "docs" / "variants.svg")


def text_of(found: Mapping[Part, Sequence[Run]]) -> str:
    """Format the tables of all sweeps."""
    return "\n\n".join(section(part, runs) for part, runs in found.items()) + "\n"


def read_records(file: Path) -> dict[Part, list[Run]]:
    """Read the records of runs, sweep by sweep."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = {part: [from_record(row) for row in rows if row["sweep"] == part.sweep] for part in PARTS}
    return {part: runs for part, runs in found.items() if runs}


def runs_of(sweep: Path) -> list[Run]:
    """Return the finished runs of a sweep."""
    return [run for place in find_runs([str(sweep)]) if (run := read_run(place.path)).finished]


def of(runs: Sequence[Run], method: str, settings: Mapping[str, str]) -> list[Run]:
    """Select the runs of a method with these settings."""
    wanted = {"method": method, **settings}
    return [run for run in runs if all(run.settings[key] == value for key, value in wanted.items())]


def curve(run: Run, key: str) -> dict[int, float]:
    """Return a metric of training or validation over optimiser steps done, without the closing record."""
    closing = run.records[-1]
    return {int(record["step"]) + 1: record[key] for record in run.records if record is not closing and key in record}


def section(part: Part, runs: Sequence[Run]) -> str:
    """Format the tables of one sweep."""
    full = {method: found for method in PREDICT_R if (found := of(runs, method, part.full))}
    tables = [outcomes(full), term(full)]
    tables.append(by_rollouts(runs) if part.full else by_steps(full))
    return f"## {part.title}\n\n" + "\n\n".join(tables)


def outcomes(groups: Mapping[str, Sequence[Run]]) -> str:
    """Format a table of the final metrics, means over seeds with 95 % intervals."""
    rows = [
        [name(method), str(len(runs)), *(said(summarise(runs, key)) for key in NUMBERS.values())]
        for method, runs in groups.items()
    ]
    return table(["", "seeds", *NUMBERS], rows)


def term(groups: Mapping[str, Sequence[Run]]) -> str:
    """Format a table of the regularisation term over training: whether it grows, and whether it stays below 0.5."""
    rows = []
    for method, runs in groups.items():
        values = [list(curve(run, TERM).values()) for run in runs]
        early, late = ([np.mean(quarter(one, last)) for one in values] for last in (False, True))
        below = [np.mean(np.asarray(one) < LIMIT) for one in values]
        growth = f"{sum(b > a + ROUNDING for a, b in zip(early, late, strict=True))} of {len(runs)}"
        numbers = [np.mean(early), np.mean(late), np.mean([max(one) for one in values])]
        rows.append([name(method), *map(number, numbers), growth, f"{np.mean(below):.2f}"])
    head = [
        "reg/forward_consistency, nats",
        "first quarter",
        "last quarter",
        "largest",
        "seeds in which it grows",
    ]
    return table([*head, f"share of steps below {LIMIT}"], rows)


def quarter(values: Sequence[float], last: bool) -> Sequence[float]:
    """Return the first or the last quarter of a curve, at least one point."""
    size = max(1, len(values) // 4)
    return values[-size:] if last else values[:size]


def by_rollouts(runs: Sequence[Run]) -> str:
    """Format a table of KL to the optimum after runs on fewer rollouts."""
    sizes = sorted({int(run.settings["rollouts.per_prompt"]) for run in runs})
    rows = [
        [name(method), *(said(summarise(of(runs, method, {"rollouts.per_prompt": str(size)}), KL)) for size in sizes)]
        for method in PREDICT_R
    ]
    return table(["KL(q*\\|\\|q) after", *(f"{size:,} rollouts" for size in sizes)], rows)


def by_steps(groups: Mapping[str, Sequence[Run]]) -> str:
    """Format a table of KL to the optimum during training."""
    steps = sorted({step for runs in groups.values() for run in runs for step in curve(run, KL)})
    rows = []
    for method, runs in groups.items():
        means = [np.mean([curve(run, KL)[step] for run in runs]) for step in steps]
        rows.append([name(method), *map(number, means)])
    return table(["KL(q*\\|\\|q) after", *(f"{step} steps" for step in steps)], rows)


def summary_of(run: Run) -> dict[str, Any]:
    """Return the record of a run: the numbers that the report uses."""
    kept = {key: run.final[key] for key in (*NUMBERS.values(), TERM) if key in run.final}
    curves = {name: {s: float(f"{v:.4g}") for s, v in curve(run, key).items()} for name, key in CURVES.items()}
    return {
        **{key: run.settings[key] for key in WHICH},
        **kept,
        **{k: values for k, values in curves.items() if values},
    }


def from_record(row: Mapping[str, Any]) -> Run:
    """Return a run with the numbers of a record."""
    points = [{"step": int(s) - 1, key: v} for name, key in CURVES.items() for s, v in row.get(name, {}).items()]
    final = {key: row[key] for key in (*NUMBERS.values(), TERM) if key in row}
    return Run(Path(), {key: row[key] for key in WHICH}, [*points, final])


def name(method: str) -> str:
    """Return the name of a method as in the papers."""
    return METHODS[method].title


def number(value: float) -> str:
    """Format a number with three digits; rounding errors become 0."""
    return "0" if abs(value) < ROUNDING else f"{value:.3g}"


def said(summary: Summary | None) -> str:
    """Format a mean with its interval."""
    if summary is None:
        return "-"
    return f"{number(summary.mean)} [{number(summary.low)}, {number(summary.high)}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(found: Mapping[Part, Sequence[Run]], file: Path) -> None:
    """Draw the term over training on the left, KL to the optimum on the right; a line per method, a band over seeds."""
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "variants", "font.family": "sans-serif"})
    figure, axes = plt.subplots(len(found), 2, figsize=(9.6, 3.1 * len(found)), squeeze=False)
    for (left, right), (part, runs) in zip(axes, found.items(), strict=True):
        for method in PREDICT_R:
            group = of(runs, method, part.full)
            band(left, method, [curve(run, TERM) for run in group])
            band(right, method, list(worth(part, runs, method)))
        left.axhline(LIMIT, color="#6b7280", linewidth=0.8)
        left.set_title(part.title, loc="left", fontsize=10)
        left.set(xlabel="optimiser steps", ylabel="reg/forward_consistency, nats", ylim=(0, None))
        right.set(xlabel="rollouts" if part.full else "optimiser steps", ylabel="KL(q*||q), nats", ylim=(0, None))
        if part.full:
            sizes = sorted({int(run.settings["rollouts.per_prompt"]) for run in runs})
            right.set_xscale("log")
            right.set_xticks(sizes, [f"{size:,}" for size in sizes])
            right.minorticks_off()
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25)
    axes[0][1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def worth(part: Part, runs: Sequence[Run], method: str) -> Iterator[dict[int, float]]:
    """Yield KL to the optimum for every seed, over numbers of rollouts, or over optimiser steps."""
    if not part.full:
        yield from (curve(run, KL) for run in of(runs, method, part.full))
        return
    by_seed: dict[str, dict[int, float]] = {}
    for run in of(runs, method, {}):
        by_seed.setdefault(run.seed, {})[int(run.settings["rollouts.per_prompt"])] = run.final[KL]
    yield from by_seed.values()


def band(axis: Any, method: str, curves: Sequence[Mapping[int, float]]) -> None:
    """Draw the mean over seeds, and the range from the lowest to the highest."""
    colour, dashes = STYLES[method]
    steps = sorted(set.intersection(*(set(one) for one in curves))) if curves else []
    values = np.array([[one[step] for step in steps] for one in curves])
    if values.size:
        axis.plot(steps, values.mean(0), dashes, color=colour, label=name(method))
        axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


if __name__ == "__main__":
    sys.exit(main())
