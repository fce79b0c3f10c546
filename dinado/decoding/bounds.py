"""Bounds on the distance between what resampling returns and q*, and on log Z = log R(c).

Of K texts of q with weights w = p C / q and mean weight Z_K one is returned in proportion to its weight, if any was
accepted (the event S). Jensen's inequality over the other K - 1 texts gives

    KL(returned || q*) <= log R(c) - log P(S) - E[log Z_K | S]

The mean weight of K texts is right on average, so E log Z_K <= log Z. With one of the K texts replaced by an exact text
of q*, which an accepted rollout of the base is, E log Z_K >= log Z (Zhao et al., 2024, for sequential Monte Carlo).
Axes: G groups of K texts of one prompt, A accepted rollouts.
"""

from __future__ import annotations

import math

import numpy as np

from dinado.decoding.log_weights import log_mean


def kl_bound(log_r: float, log_z_G: np.ndarray) -> float:
    """Compute the bound on KL(returned || q*) of one prompt, in nats; NaN if no group has an accepted text.

    Args:
        log_r: log R(c).
        log_z_G: log of the mean weight of each group; -inf where no text was accepted.
    """
    found = log_z_G[np.isfinite(log_z_G)]
    if not len(found):
        return math.nan
    return log_r - math.log(len(found) / len(log_z_G)) - float(found.mean())


def kl_of_returned(log_r: float, success: float, log_z_YM: np.ndarray) -> float:
    """Estimate KL(q*||returned), given that a text is accepted, in nats; too large on average for a finite M.

    It is -E_{q*} log(R E[1 / Z_K] / P(S)).

    Args:
        success: P(S), the probability that a group has an accepted text.
        log_z_YM: for each text of q*, log mean weights of groups that it is retained in.
    """
    log_inverse_Y = np.array([log_mean(-log_z_M) for log_z_M in log_z_YM])
    return math.log(success) - log_r - float(log_inverse_Y.mean())


def log_z_below(log_z_G: np.ndarray) -> float:
    """Compute E log Z_K, which is at most log Z; -inf if a group has no accepted text."""
    return float(log_z_G.mean())


def log_z_above(exact_A: np.ndarray, log_weight_GK: np.ndarray) -> float:
    """Compute E log Z_K with an exact text of q* among the K, which is at least log Z.

    Args:
        exact_A: log weights of exact texts.
        log_weight_GK: log weights of groups of texts of q; the first of each is replaced.
    """
    pinned = [log_mean(np.append(exact, others_K[1:])) for exact in exact_A for others_K in log_weight_GK]
    return float(np.mean(pinned))
