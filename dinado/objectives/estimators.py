"""Sequence-level estimates from the rollouts of one prompt, all in nats.

Axes: K rollouts of one prompt, drawn from the base (or weighted to it).
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_to_optimum(log_p_K: Tensor, log_q_K: Tensor, score_K: Tensor, weight_K: Tensor) -> float | None:
    """Estimate KL(q*||q) of one prompt from many, possibly weighted rollouts; None without a positive one.

    With few accepted rollouts it is too small; dinado/metrics/distance.py estimates without that bias, from exact
    samples of the base.

    With q* = p C / R, KL = E_{q*}[log p - log q] - log R, which is estimated by
    sum(w C (log p - log q)) / sum(w C) - log(sum(w C) / sum(w)).
    """
    positive_K = (weight_K * score_K).double()
    if positive_K.sum() <= 0:
        return None
    gap = (positive_K * (log_p_K - log_q_K).double()).sum() / positive_K.sum()
    return float(gap - torch.log(positive_K.sum() / weight_K.double().sum()))


def pairwise_auc(value_K: Tensor, score_K: Tensor) -> float | None:
    """Compute the probability that a positive rollout is valued above a negative one of the same prompt.

    Ties count half. The result is None when the prompt has no pair of different verdicts.
    """
    positive, negative = value_K[score_K > 0.5].double(), value_K[score_K <= 0.5].double()
    if not len(positive) or not len(negative):
        return None
    difference = positive[:, None] - negative[None, :]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def calibration_error(predicted_N: Tensor, observed_N: Tensor, num_bins: int = 10) -> float:
    """Compute the expected calibration error over bins of equal count: mean of |mean predicted - mean observed|."""
    order = predicted_N.double().argsort()
    predicted, observed = predicted_N.double()[order], observed_N.double()[order]
    error = 0.0
    for bin_index in torch.arange(len(order)).tensor_split(min(num_bins, len(order))):
        error += len(bin_index) * float((predicted[bin_index].mean() - observed[bin_index].mean()).abs())
    return error / len(order)
