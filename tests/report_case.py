"""Run folders as training leaves them, written in a moment."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.settings import loader

SETTINGS = ("data.val_prompts=3", "eval.text_metrics=false")


def make_run(
    runs: Path,
    name: str,
    *overrides: str,
    success: float = 0.8,
    kl: float = 0.5,
    status: str = "finished",
    points: int = 20,
    scores: Sequence[Sequence[float]] = (),
    text: str = "a b c",
    **numbers: float,
) -> Path:
    """A run of an exact world with made-up numbers.

    Args:
        scores: for each held-out prompt, those of its samples.
        text: what every sample says.
        numbers: more of the closing record, ``val__bleu4`` for ``val/bleu4``.
    """
    folder = runs / name
    (folder / "samples").mkdir(parents=True)
    loaded = loader.load("exact_world", [*SETTINGS, *overrides])
    (folder / "config.yaml").write_text(loader.to_yaml(loaded), encoding="utf-8")
    (folder / "env.json").write_text('{"git": {"commit": "0123456789", "dirty": false}}')
    (folder / "STATUS").write_text(f"{status}\n{{}}\n")
    noise = np.random.default_rng(sum(map(ord, name))).normal(size=(points, 6))
    lines: list[dict[str, Any]] = [{"step": 0, "weights/ess_fraction": 0.7, "rollouts/success": 0.1}]
    for i in range(points):
        wave = [round(0.3 * math.exp(-i / points) + 0.02 * float(x), 6) for x in noise[i]]
        names = (
            "reg/forward_consistency",
            "norm/log_beta_mean",
            "norm/log_beta_std",
            "norm/log_ratio_max",
            "train/loss",
        )
        lines.append({"step": i * 10 + 9, **dict(zip(names, wave, strict=False)), "val/kl_to_optimum": kl + wave[5]})
    if status == "finished":
        record = {
            "val/success": success,
            "val/kl_to_optimum": kl,
            "val/kl_from_base": 2 * kl,
            "reg/forward_consistency": 9.0,
        }
        record |= {"val/success_low": success - 0.1, "val/success_high": success + 0.1, "weights/ess_fraction": 0.7}
        record |= {"base/success": 0.1, "base/kl_from_base": 0.0, "base/kl_to_optimum": 1.9}
        record |= {key.replace("__", "/"): value for key, value in numbers.items()}
        lines.append({"step": points * 10, **record})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    traced = {
        "tokens": [f" {word}" for word in text.split()] + [""],
        "r": [0.1, *[0.5] * (len(text.split()) - 1), 0.95],
    }
    rows = []
    for prompt, values in enumerate(scores or [[success]]):
        for k, score in enumerate(values):
            row = {
                "prompt": f"prompt {prompt}",
                "text": text,
                "score": score,
                "finished": True,
                "log_q": -1.0,
                "log_p": -2.0,
            }
            rows.append(row | (traced if k == 0 else {}))
    for kind in ("before", "after"):
        (folder / "samples" / f"{kind}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder
