"""Draw docs/exact_world.svg from the results of the exact-world sweep.

python benchmarks/exact_world_figure.py OUT/results.jsonl [more ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from workbench.settings.methods import PREDICT_R  # noqa: E402

INK, DOTS = "#1b1b1b", "#c2410c"


def main() -> int:
    """Draw one panel per rarity, with one dot per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="results of a sweep, OUT/results.jsonl")
    files = parser.parse_args().results
    if missing := [file for file in files if not file.is_file()]:
        parser.error(f"{missing[0]} does not exist; exact_world_sweep.py writes it")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    rows = [row for row in rows if row["setting"] == "default"]
    if not rows:
        parser.error("the sweep holds no run of the default setting")
    rarities = sorted({row["rarity"] for row in rows}, reverse=True)
    plt.rcParams.update(
        {"font.size": 10, "axes.edgecolor": INK, "svg.hashsalt": "exact world", "font.family": "sans-serif"}
    )
    figure, axes = plt.subplots(1, len(rarities), figsize=(4.2 * len(rarities), 2.6), sharex=True, sharey=True)
    for axis, rarity in zip(axes if len(rarities) > 1 else [axes], rarities, strict=True):
        for height, method in enumerate(reversed(PREDICT_R)):
            gaps = [row["val/gap_closed"] for row in rows if row["rarity"] == rarity and row["method"] == method]
            axis.plot(gaps, [height] * len(gaps), "o", color=DOTS, alpha=0.75, markersize=7, clip_on=False)
        axis.set_yticks(range(len(PREDICT_R)), [name.replace("_", " ") for name in reversed(PREDICT_R)])
        axis.set_xlim(0, 1)
        axis.set_ylim(-0.6, len(PREDICT_R) - 0.4)
        axis.set_title(
            "oracle accepts about 8 %" if rarity == 0 else "oracle accepts about 0.7 %", loc="left", fontsize=10
        )
        axis.set_xlabel("share of KL(q*||p) closed (1 is q*)")
        axis.grid(axis="x", alpha=0.25)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.tick_params(axis="y", length=0)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "exact_world.svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
