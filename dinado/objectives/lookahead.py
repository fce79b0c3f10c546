"""The lookahead objective: a target for q at every prefix, from the values of the prefix extended by each likely token.

By definition q*(v | y_<=i) is proportional to p(v | y_<=i) R(y_<=i, v) (NADO, Meng et al. 2022). Given values U of the
K likeliest continuations and of all others together, that is a target for every token of the vocabulary at every
prefix of every rollout, accepted or not. A loss on sampled tokens covers one token per prefix, and only through the
verdict at the end of the text; the only noise of the lookahead loss is that of the values. The target is our addition.
Axes: N positions, K candidates, L = K + 1 with all other tokens as the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEARLY_ALL = 1 - 1e-6


def lookahead_targets(
    log_p_NK: Tensor, value_NK: Tensor, other_value_N: Tensor, sharpness: float, floor: float
) -> Tensor:
    """Compute the log of p (floor + (1 - floor) U)^sharpness, normalised, ``[N, L]``.

    Args:
        log_p_NK: log-probabilities of the candidates under the base.
        value_NK, other_value_N: U after each candidate, and after any other token, in [0, 1].
        sharpness: exponent of the values; 1 is the optimum for these values, and more compensates for values that
            capture only part of what decides success.
        floor: the value of certain failure; above 0 it limits the divergence from p that q accepts to avoid failure.
    """
    log_p_NL = torch.cat([log_p_NK, _log_others(log_p_NK)], -1)
    value_NL = torch.cat([value_NK, other_value_N[..., None]], -1)
    log_value_NL = (floor + (1 - floor) * value_NL).clamp_min(1e-6).log()
    return (log_p_NL + sharpness * log_value_NL).log_softmax(-1)


def lookahead_divergence(log_q_BTK: Tensor, log_target_BTL: Tensor, weight_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Compute KL(target || q) over candidates and all others together, weighted, summed per rollout, ``[B]`` in nats.

    Args:
        log_q_BTK: log-probabilities of the candidates under the controlled model.
        weight_BT: value of the prefix, so that prefixes that an obedient model will rarely visit count little.
    """
    log_q_BTL = torch.cat([log_q_BTK, _log_others(log_q_BTK)], -1)
    kl_BT = (log_target_BTL.exp() * (log_target_BTL - log_q_BTL)).sum(-1)
    return (kl_BT * weight_BT * mask_BT).sum(1)


def _log_others(log_p_NK: Tensor) -> Tensor:
    """Compute the log of the probability outside the candidates, ``[N, 1]``."""
    return torch.log1p(-log_p_NK.exp().sum(-1, keepdim=True).clamp_max(_NEARLY_ALL))
