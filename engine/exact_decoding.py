"""What ``evaluate.py RUN --exact K`` measures: how near chosen texts come to q*, and what they cost.

Axes: P held-out prompts, G groups of K texts of one prompt, A accepted held-out rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.tasks import Task
from datamodules.training_rows import rows_by_prompt
from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.bounds import kl_bound, log_z_above
from dinado.decoding.log_weights import effective_number, log_mean
from dinado.decoding.quasi_rejection import DialPoint, dial
from dinado.decoding.smc import SMCSettings, smc
from dinado.decoding.twists import Twist
from dinado.decoding.weighted_texts import ROWS, WeightedTexts, draw_weighted
from dinado.metrics.distance import distance
from dinado.metrics.intervals import Interval, mean_interval, rate_interval
from dinado.seeding import derive_seed
from engine.run_twist import twist_of
from lightning_modules.rollout_method import RolloutMethod

Decoder = Literal["sir", "smc", "qrs"]
GROUPS = 4
"""Groups of K texts that are drawn for a prompt."""
PARTITIONS = 25
"""Random divisions of a prompt's independent texts into groups, which waste less of them than one."""
UNKNOWN = Interval(math.nan, math.nan, math.nan)
DIAL = 7
"""Points of the dial between cost and distance."""


class Drawn(NamedTuple):
    """Weighted texts of all held-out prompts.

    Attributes:
        texts: all texts; for particles, one entry per prompt and group.
        weight_PGK: log weights by group; independent texts are divided into groups several times.
        exact: log weights of accepted held-out rollouts of each prompt; empty with particles.
        above: mean log mean weight of groups with an exact text, by prompt.
    """

    texts: list[WeightedTexts]
    weight_PGK: np.ndarray
    exact: list[np.ndarray]
    above: dict[int, float]


@torch.no_grad()
def exact_numbers(
    method: RolloutMethod,
    data: RolloutDataModule,
    task: Task,
    texts: int,
    decoder: Decoder = "sir",
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure texts that are chosen among K on the held-out prompts.

    Args:
        texts: K.
        decoder: ``sir`` chooses among independent texts, ``smc`` among particles; ``qrs`` takes the first text that is
            accepted with probability min(1, p C / (beta q)), and is measured at several beta.

    Raises:
        ConfigError: the run has no twist for ``smc``.
    """
    model, twist = method.controlled(), twist_of(method, task) if decoder == "smc" else None
    drawn = _draw(method, model, data, task, texts, twist, progress)
    log_z_PG = np.apply_along_axis(log_mean, 2, drawn.weight_PGK)
    base = distance(data.held_out.of_base())
    log_r_P = -base.gap_P if len(base.gap_P) else np.full(len(log_z_PG), math.nan)
    bound_P = np.array([kl_bound(log_r, log_z_G) for log_r, log_z_G in zip(log_r_P, log_z_PG, strict=True)])
    known_P = bound_P[np.isfinite(bound_P)]
    looser = [kl_bound(log_r, log_z_PG[place]) for place, log_r in drawn.above.items()]
    looser = [bound for bound in looser if math.isfinite(bound)]
    scores = [score > 0 for one in drawn.texts for score in one.samples.score]
    tokens = sum(sum(one.samples.num_tokens) for one in drawn.texts)
    numbers: dict[str, Any] = {
        "decoder": decoder,
        "texts": texts,
        "success_of_one": float(np.mean(scores)),
        "tokens_per_text": tokens / (GROUPS * len(log_z_PG)),
        "effective": float(np.mean(np.apply_along_axis(effective_number, 2, drawn.weight_PGK))),
        "log_r": float(np.mean(log_r_P)),
        "log_z_above": float(np.mean(list(drawn.above.values()))) if drawn.above else math.nan,
        "prompts_without": int(len(bound_P) - len(known_P)),
    }
    found_PG = np.isfinite(log_z_PG)
    numbers |= _named("success", rate_interval(found_PG.mean(1), GROUPS))
    numbers |= _named("kl_bound", mean_interval(known_P) if len(known_P) else UNKNOWN)
    numbers |= _named("kl_bound_above", mean_interval(looser) if looser else UNKNOWN)
    if decoder == "qrs":
        numbers["dial"] = [point._asdict() for point in _dial(drawn, log_r_P)]
    return numbers


def _draw(
    method: RolloutMethod,
    model: ControlledLM,
    data: RolloutDataModule,
    task: Task,
    texts: int,
    twist: Twist | None,
    progress: bool,
) -> Drawn:
    """Draw and weigh the texts of all held-out prompts, a block of prompts at a time."""
    config, prompts = method.config, task.val_prompts
    budget, truncated = config.rollouts.max_new_tokens, config.rollouts.truncated
    common: dict[str, Any] = {"max_new_tokens": budget, "truncated": truncated, "seed": config.seed}
    exact = _accepted(data)
    size = max(1, ROWS // (GROUPS * texts))
    blocks = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
    found: list[WeightedTexts] = []
    weights: list[np.ndarray] = []
    weights_of_exact: list[np.ndarray] = []
    above: dict[int, float] = {}
    for block in track(blocks, "choosing among texts", transient=True, disable=not progress):
        asked = [place for place in block for _ in exact.get(place, [])]
        retained = [tokens for place in block for tokens in exact.get(place, [])]
        if twist is None:
            some = draw_weighted(model, task.oracle, prompts, texts=GROUPS * texts, places=block, **common)
            random = np.random.default_rng(derive_seed(config.seed, "groups", block.start))
            groups = [_groups(one.log_weight_K, texts, random) for one in some]
            settings = SMCSettings(1, threshold=0.0)
        else:
            settings = SMCSettings(texts)
            places = [place for place in block for _ in range(GROUPS)]
            some = smc(model, task.oracle, prompts, twist, settings, places=places, **common)
            groups = list(np.stack([one.log_weight_K for one in some]).reshape(len(block), GROUPS, texts))
        pinned = smc(model, task.oracle, prompts, twist, settings, places=asked, retained=retained, **common)
        for place, groups_GK in zip(block, groups, strict=True):
            mine = [one.log_weight_K for one, of in zip(pinned, asked, strict=True) if of == place]
            if twist is None:
                weights_of_exact.append(np.concatenate(mine) if mine else np.array([]))
            if mine and twist is None:
                above[place] = log_z_above(weights_of_exact[-1], groups_GK[:GROUPS])
            elif mine:
                above[place] = float(np.mean([log_mean(log_weight_K) for log_weight_K in mine]))
        weights += groups
        found += some
    return Drawn(found, np.stack(weights), weights_of_exact, above)


def _groups(log_weight_M: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Divide independent texts into groups several times, ``[G, K]``."""
    return np.concatenate([random.permutation(log_weight_M).reshape(-1, size) for _ in range(PARTITIONS)])


def _accepted(data: RolloutDataModule) -> dict[int, list[list[int]]]:
    """Return the tokens of at most GROUPS accepted held-out rollouts of each prompt, by its position."""
    rows, found = data.val_rows, {}
    assert rows.accepted_N is not None, "held-out rows are judged"
    for rows_K in rows_by_prompt(rows.prompt_index_N):
        kept = [row for row in rows_K if rows.accepted_N[row]][:GROUPS]
        if kept:
            found[int(rows.prompt_index_N[kept[0]])] = [rows.response(row)[0].tolist() for row in kept]
    return found


def _dial(drawn: Drawn, log_r_P: np.ndarray) -> list[DialPoint]:
    """Return points of the dial from the smallest to the largest weight that occurs, over prompts with exact texts."""
    known = [place for place, exact_A in enumerate(drawn.exact) if len(exact_A)]
    weights = [drawn.texts[place].log_weight_K for place in known]
    finite = [log_weight for log_weight_K in weights for log_weight in log_weight_K if math.isfinite(log_weight)]
    if not finite:
        return []
    log_betas = np.linspace(min(finite), max(finite), DIAL).tolist()
    return dial(weights, log_betas, [drawn.exact[place] for place in known], [float(log_r_P[place]) for place in known])


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def show_exact(console: Console, numbers: dict[str, Any], kl_of_one: float) -> None:
    """Print what one text of the model gives, and one chosen among K; and the dial, if it was measured."""
    if points := numbers.get("dial"):
        _show_dial(console, points)
        return
    among = {"sir": "texts", "smc": "particles"}[numbers["decoder"]]
    shown = Table(title=f"One of {numbers['texts']} {among}, chosen in proportion to its weight", title_justify="left")
    for name in ("", "accepted", "distance to q*, nats", "tokens sampled"):
        shown.add_column(Text(name), justify="left" if not name else "right")
    each = numbers["tokens_per_text"] / numbers["texts"]
    if numbers["decoder"] == "sir":
        kl = f"KL(q*||q) {kl_of_one:.2f}"
        shown.add_row("the model's text", f"{numbers['success_of_one']:.3f}", Text(kl), f"{each:.0f}")
    bound = f"at most {numbers['kl_bound']:.2f}"
    if math.isfinite(numbers["kl_bound_low"]):  # a single prompt has no interval over prompts
        bound += f" [{numbers['kl_bound_low']:.2f}, {numbers['kl_bound_high']:.2f}]"
    success = f"{numbers['success']:.3f} [{numbers['success_low']:.3f}, {numbers['success_high']:.3f}]"
    shown.add_row("the chosen text", success, Text(bound), f"{numbers['tokens_per_text']:.0f}")
    console.print(shown)
    if math.isfinite(numbers["kl_bound_above"]):
        low, high = numbers["kl_bound_above_low"], numbers["kl_bound_above_high"]
        console.print(
            f"with accepted rollouts of the base among the {among}, which bound log R(c) from above, it is "
            f"at most {numbers['kl_bound_above']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else "")
        )
    if without := numbers["prompts_without"]:
        console.print(f"{without} prompts are left out of the distance: none of their texts is accepted")


def _show_dial(console: Console, points: Sequence[dict[str, float]]) -> None:
    shown = Table(title="A text is accepted with probability min(1, p C / (beta q))", title_justify="left")
    for name in ("log beta", "accepted", "texts for one", "KL(q*||accepted), nats"):
        shown.add_column(Text(name), justify="right")
    for point in points:
        rate = point["rate"]
        shown.add_row(f"{point['log_beta']:.2f}", f"{rate:.3f}", f"{1 / rate:.1f}", f"{point['kl']:.2f}")
    console.print(shown)
