"""What ``evaluate.py RUN --exact K`` shows: how near resampled texts come to q*, and what they cost.

Axes: P held-out prompts, G groups of K texts of one prompt.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.tasks import Task
from dinado.decoding.bounds import kl_bound, log_z_above
from dinado.decoding.log_weights import effective_number, log_mean
from dinado.decoding.weighted_texts import WeightedTexts, draw_weighted
from dinado.metrics.distance import distance
from dinado.metrics.intervals import mean_interval, rate_interval
from engine.explained_distance import accepted_log_weights
from lightning_modules.rollout_method import RolloutMethod


@torch.no_grad()
def exact_numbers(method: RolloutMethod, data: RolloutDataModule, task: Task, texts: int) -> dict[str, Any]:
    """Measure resampling among K texts on the held-out prompts.

    Args:
        texts: K; ``eval.samples_per_prompt`` texts are returned for every prompt.
    """
    config = method.config
    groups = config.eval.samples_per_prompt
    found = draw_weighted(
        method.controlled(),
        task.oracle,
        task.val_prompts,
        texts=groups * texts,
        max_new_tokens=config.rollouts.max_new_tokens,
        truncated=config.rollouts.truncated,
        seed=config.seed,
    )
    weight_PGK = np.stack([one.log_weight_K.reshape(groups, texts) for one in found])
    log_z_PG = np.array([[log_mean(weights_K) for weights_K in weights_GK] for weights_GK in weight_PGK])
    base = distance(data.held_out.of_base())
    log_r_P = -base.gap_P if len(base.gap_P) else np.full(len(found), math.nan)
    exact = accepted_log_weights(method, data)
    bounds = np.array([kl_bound(log_r, log_z_G) for log_r, log_z_G in zip(log_r_P, log_z_PG, strict=True)])
    above = [log_z_above(np.array(exact[place]), weight_PGK[place]) for place in sorted(exact)]
    numbers: dict[str, Any] = {
        "texts": texts,
        "success": float(np.isfinite(log_z_PG).mean()),
        "success_of_one": float(np.mean([score > 0 for one in found for score in one.samples.score])),
        "tokens_per_text": _tokens(found) / (groups * len(found)),
        "effective": float(np.mean([effective_number(one) for one in weight_PGK.reshape(-1, texts)])),
        "log_r": float(np.mean(log_r_P)),
        "log_z_above": float(np.mean(above)) if above else math.nan,
    }
    for name, values in (("success", np.isfinite(log_z_PG).mean(1)), ("kl_bound", bounds)):
        interval = rate_interval(values, groups) if name == "success" else mean_interval(values)
        numbers |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return numbers


def show_exact(console: Console, numbers: dict[str, Any], kl_of_one: float) -> None:
    """Print what one text of the model gives, and one chosen among K."""
    shown = Table(title=f"One of {numbers['texts']} texts, chosen in proportion to p C / q", title_justify="left")
    for name in ("", "accepted", "distance to q*, nats", "tokens sampled"):
        shown.add_column(Text(name), justify="left" if not name else "right")
    each = numbers["tokens_per_text"] / numbers["texts"]
    kl = f"KL(q*||q) {kl_of_one:.2f}"
    shown.add_row("the model's text", f"{numbers['success_of_one']:.3f}", Text(kl), f"{each:.0f}")
    bound = f"at most {numbers['kl_bound']:.2f}"
    if math.isfinite(numbers["kl_bound_low"]):  # a single prompt has no interval over prompts
        bound += f" [{numbers['kl_bound_low']:.2f}, {numbers['kl_bound_high']:.2f}]"
    success = f"{numbers['success']:.3f} [{numbers['success_low']:.3f}, {numbers['success_high']:.3f}]"
    shown.add_row("the chosen text", success, Text(bound), f"{numbers['tokens_per_text']:.0f}")
    console.print(shown)


def _tokens(found: list[WeightedTexts]) -> int:
    return sum(sum(one.samples.num_tokens) for one in found)
