"""Weights and success rates of the rollouts of every prompt, and metrics of these weights.

Axes: N rows, K rows of one prompt, J sources, P prompts.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import torch

from datamodules.training_rows import Rows, rows_by_prompt
from dinado.metrics.intervals import rate_interval, weighted_proportion_interval
from dinado.objectives.pareto import pareto_smoothed
from dinado.objectives.weights import (
    clipped,
    effective_size,
    importance_weights,
    likelihood_weights,
    log_mixture,
    smoothed_root,
    summarise_weights,
)
from dinado.rollouts.drawn import Drawn
from workbench.settings.data_settings import TargetConfig

log = logging.getLogger(__name__)

FEW_POSITIVES = 30
"""Smallest effective number of accepted rollouts, over all prompts, that estimates can be trusted with."""


def weighted_rows(drawn: Drawn, targets: TargetConfig) -> tuple[Rows, dict[str, float]]:
    """Build rows with weights and success rates, and compute the ``weights/`` metrics.

    Weights have mean 1 over all rows; within a prompt they are relative to each other, and every prompt has the same
    total weight whatever its number of rollouts.
    """
    rollouts = drawn.rollouts
    weight_N, root_N = np.ones(len(rollouts)), np.zeros(len(rollouts), dtype=np.float32)
    by_prompt = rows_by_prompt(rollouts.prompt_index_N)
    shapes, summaries, positives, rates = [], [], 0.0, []
    for rows_K in by_prompt:
        weight_K = _weights(drawn, rows_K, targets)
        if targets.smoothing == "pareto":
            weight_K, shape = pareto_smoothed(weight_K)
            shapes.append(shape)
        weight_K = clipped(weight_K, targets.clip)
        score_K = torch.tensor(rollouts.score_N[rows_K])
        root_N[rows_K] = smoothed_root(score_K, weight_K)
        summaries.append(summarise_weights(weight_K))
        positives += effective_size(weight_K * score_K)
        rates.append(float((weight_K * score_K).sum() / weight_K.sum()))
        weight_N[rows_K] = weight_K.numpy() * len(rollouts) / (len(by_prompt) * len(rows_K))
    weight_N = weight_N.astype(np.float32)
    rows = Rows(rollouts.prompt_index_N, rollouts.length_N, rollouts.score_N, weight_N, root_N, rollouts.response)
    if not len(rows):
        return rows, {}
    if len(rates) > 1:
        rate = rate_interval(rates, len(rollouts) // len(rates))
    else:
        rate = weighted_proportion_interval(rollouts.score_N, weight_N)
    numbers = {
        "weights/ess_fraction": float(np.mean([summary.ess_fraction for summary in summaries])),
        "weights/max_share": max(summary.max_share for summary in summaries),
        "weights/effective_positives": positives,
        "rollouts/success_rate": rate.mean,
        "rollouts/success_rate_low": rate.low,
        "rollouts/success_rate_high": rate.high,
    }
    if known := [shape for shape in shapes if not math.isnan(shape)]:
        numbers["weights/pareto_k"] = float(np.mean(known))
    numbers |= _support(drawn, targets)
    if positives < FEW_POSITIVES:
        log.warning(
            "the rollouts amount to %.1f accepted ones, too few to trust what is learned or estimated from them; "
            "raise rollouts.per_prompt, or spread it over rollouts.rounds with targets.weights=balance",
            positives,
        )
    return rows, numbers


def _support(drawn: Drawn, targets: TargetConfig) -> dict[str, float]:
    """Estimate the mass of the base on the support of truncated proposals, E_s[p / s]; empty without truncation."""
    if not drawn.truncated or targets.weights not in ("importance", "balance"):
        return {}
    rollouts = drawn.rollouts
    log_s_N = drawn.log_s_NJ[np.arange(len(rollouts)), drawn.source_N]
    ratio_N = np.exp(rollouts.log_p_N - log_s_N)
    support = float(np.mean([ratio_N[rows_K].mean() for rows_K in rows_by_prompt(rollouts.prompt_index_N)]))
    log.warning(
        "rollouts.top_k and top_p leave out what the base says %.0f %% of the time; no weight makes up for that, so "
        "success rates and R are those of the base cut down to the rest",
        100 * (1 - min(support, 1.0)),
    )
    return {"rollouts/support": support}


def _weights(drawn: Drawn, rows_K: np.ndarray, targets: TargetConfig) -> torch.Tensor:
    """Compute the weights of the rollouts of one prompt, float64 with mean 1."""
    rollouts = drawn.rollouts
    log_p_K = torch.tensor(rollouts.log_p_N[rows_K])
    if targets.weights == "uniform":
        return torch.ones(len(rows_K), dtype=torch.float64)
    if targets.weights == "likelihood":
        numbers: dict[bytes, int] = {}
        same = [numbers.setdefault(rollouts.response(row)[0].tobytes(), len(numbers)) for row in rows_K]
        return likelihood_weights(log_p_K, torch.tensor(same), targets.complement)
    log_s_KJ = torch.tensor(drawn.log_s_NJ[rows_K])
    if targets.weights == "balance":
        count_J = torch.tensor(drawn.count_PJ[rollouts.prompt_index_N[rows_K[0]]])
        return importance_weights(log_p_K, log_mixture(log_s_KJ, count_J))
    own_K = torch.tensor(drawn.source_N[rows_K])
    return importance_weights(log_p_K, log_s_KJ.gather(1, own_K[:, None])[:, 0])
