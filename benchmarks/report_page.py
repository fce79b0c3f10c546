"""Size of compare.py's page, and seconds until Chromium has opened it and drawn every figure.

    python benchmarks/report_page.py                               100 runs of 2,000 points: 20 variants, 5 seeds
    python benchmarks/report_page.py --variants 100 --seeds 1

The runs are synthetic. The timer starts with an empty profile and stops when the last figure is drawn; `load` is the
time until the browser reports that it has read the page.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import timing
from benchmarks.browser import ALL_DRAWN, browser, until
from workbench.report.comparison import compare
from workbench.report.output import write_page
from workbench.report.run_reader import Run, default_settings

TRAINED = (
    *("reg/forward_consistency", "reg/forward_consistency_per_token", "norm/log_beta_mean", "norm/log_beta_std"),
    *("norm/log_ratio_max", "norm/log_ratio_l2", "norm/adapter_fro", "train/loss", "rollouts/success"),
    *("val/kl_to_optimum", "val/r_calibration_error", "weights/ess_fraction"),
)
TEXT = "the quick brown fox jumps over a lazy dog while nobody in this small village looks at it for long"


def main() -> int:
    """Measure the page and print the numbers."""
    options = timing.parser(__doc__)
    options.add_argument("--variants", type=int, default=20)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--points", type=int, default=2000)
    arguments = options.parse_args()
    runs = [made_up(v, s, arguments.points) for v in range(arguments.variants) for s in range(arguments.seeds)]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        start = time.perf_counter()
        write_page(compare(runs), page)
        written = time.perf_counter() - start
        turns = [opened(page) for _ in range(arguments.repeats)]
        numbers = {
            "page_mb": page.stat().st_size / 1e6,
            "write_seconds": written,
            "load_seconds": statistics.median(load for load, _ in turns),
            "open_seconds": statistics.median(drawn for _, drawn in turns),
        }
    timing.show([{"what": name, "value": value} for name, value in numbers.items()])
    return timing.finish(numbers, arguments.json)


def opened(page: Path) -> tuple[float, float]:
    """Measure the seconds until a new browser has loaded the page, and until all of its figures are drawn."""
    with browser() as driver:
        start = time.perf_counter()
        driver.get(page.as_uri())
        loaded = time.perf_counter() - start
        until(driver, ALL_DRAWN)
        return loaded, time.perf_counter() - start


def made_up(variant: int, seed: int, points: int) -> Run:
    """Build a synthetic run with random walks as curves and sample texts of some twenty tokens."""
    draw = np.random.default_rng((variant, seed))
    walks = np.cumsum(draw.normal(size=(points, len(TRAINED))), axis=0) / 40 + variant / 10
    records = [{"step": step, **dict(zip(TRAINED, row, strict=True))} for step, row in enumerate(walks.tolist(), 1)]
    final = {"val/success": float(draw.uniform()), "val/kl_from_base": float(draw.uniform(0, 4)), "base/success": 0.1}
    final |= {"base/kl_from_base": 0.0, "base/kl_to_optimum": 2.0, "val/bleu4": float(draw.uniform(5, 30))}
    records.append({"step": points + 1, **final})
    texts = [
        {
            "prompt": f"prompt {prompt}",
            "text": TEXT,
            "tokens": [f" {word}" for word in TEXT.split()],
            "r": draw.uniform(size=len(TEXT.split())).tolist(),
            "score": float(draw.uniform() > 0.5),
        }
        for prompt in range(6)
    ]
    settings = default_settings() | {"seed": str(seed), "optim.lr": f"{variant + 1}e-4"}
    return Run(Path(f"runs/made-up/{variant}-{seed}"), settings, records, samples={"before": texts, "after": texts})


if __name__ == "__main__":
    raise SystemExit(main())
