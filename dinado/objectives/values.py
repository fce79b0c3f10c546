"""Values R, the probability that a prefix will end in success, from per-token statistics.

Four parameterisations of log R_i(v) = log R(c, y_<=i, v), given scores s_i(v) with q_i proportional to p_i exp(s_i):

* :func:`nado_values`   log R_i(v) = s_i(v), a log-sigmoid (Meng et al. 2022).
* :func:`soft_values`   log R_i(v) = log beta_i + s_i(v) - N_i, beta_i from a norm head and N_i the L-infinity norm
  (Lu et al., DiNADO 2024: Soft and Merge) or the mean under p, in which case beta_i is R(c, y_<=i) itself.
* :func:`hard_values`   log R_i(v) = log R(c) + sum_{j<=i} log(q_j / p_j), forward-consistent by construction. The
  published text names this variant without equations; this is our reconstruction of it.

Axes: B rollouts, T response tokens; row i scores token i + 1 of the response.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dinado.objectives.logspace import at_least_float
from dinado.objectives.vocabulary import VocabularyStatistics

Norm = Literal["linf", "mean"]


class TokenValues(NamedTuple):
    """Values along each rollout, in nats.

    Attributes:
        log_r_BT: log R_i(y_{i+1}), the value after the token of row i.
        log_v_BT: log V_i = log E_{v ~ p_i} R_i(v), the value before it as the next step sees it.
    """

    log_r_BT: Tensor
    log_v_BT: Tensor


def log_beta(norm_logit_BT: Tensor, root_B: Tensor | None) -> Tensor:
    """Compute the log of the step-wise norm, ``[B, T]``: log sigmoid of the norm head's output.

    Args:
        root_B: a known success rate R(c) for each row. The head then predicts log-odds relative to it, so that it
            need not learn the differences between prompts, only those within a prompt.
    """
    logit_BT = at_least_float(norm_logit_BT)
    return F.logsigmoid(logit_BT if root_B is None else logit_BT + torch.logit(root_B.float())[:, None])


def nado_values(statistics: VocabularyStatistics) -> TokenValues:
    """Return R directly from the scores, which must be log-sigmoids."""
    return TokenValues(statistics.score, statistics.log_mean)


def soft_values(statistics: VocabularyStatistics, log_beta_BT: Tensor, norm: Norm) -> TokenValues:
    """Compute R = beta times the normalised ratio; decoding uses the ratio alone."""
    norm_BT = statistics.maximum if norm == "linf" else statistics.log_mean
    if norm_BT is None:
        raise ValueError("the L-infinity norm needs statistics with their maximum")
    return TokenValues(
        log_beta_BT + statistics.score - norm_BT,
        log_beta_BT + statistics.log_mean - norm_BT,
    )


def hard_values(statistics: VocabularyStatistics, log_root_B: Tensor) -> TokenValues:
    """Compute R by telescoping from the root: every step multiplies it by q/p of the sampled token."""
    log_ratio_BT = statistics.score - statistics.log_mean
    log_r_BT = log_root_B[:, None] + log_ratio_BT.cumsum(1)
    return TokenValues(log_r_BT, log_r_BT - log_ratio_BT)
