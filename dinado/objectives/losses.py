"""The oracle loss: cross entropies against the oracle's verdict, and forward consistency.

With R_i = R(c, y_<=i+1) after the token of row i and V_i = E_{p_i} R_i(v) before it:

* token cross entropy  sum_i BCE(R_i, C)           (NADO, Meng et al. 2022)
* value cross entropy  sum_i BCE(V_i, C): with the mean norm V_i = beta_i, and the norm alone learns from it
* terminal cross entropy  BCE(R_T, C)              (DiNADO, Lu et al. 2024)
* forward consistency  sum_{i>=1} f_KL(V_i, R_{i-1}), or the generalised KL divergence of Poisson means
* overflow  relu(log R)^2, for parameterisations that do not bound R by 1
* path  the cross entropies and the overflow again, of the telescoped value R(c) prod_{j<=i} q_j / p_j. A step-wise norm
  can explain the oracle alone; here the ratios, which are what decodes, have to (our addition, docs/methods.md).
* lookahead  the divergence of q from p times the value of every likely continuation, see dinado/objectives/lookahead.py

All are sums over a rollout, averaged over rollouts with importance weights. Axes: B rollouts, T response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dinado.objectives.logspace import bernoulli_ce, bernoulli_kl, poisson_ce
from dinado.objectives.values import TokenValues


@dataclass(frozen=True)
class LossWeights:
    """Which terms count, and how much; the fields are those of the configuration's `objective` section."""

    token_ce: float = 1.0
    terminal_ce: float = 0.0
    value_ce: float = 0.0
    regulariser: float = 0.5
    direction: Literal["expected_first", "predicted_first"] = "expected_first"
    detach: Literal["none", "expected", "predicted", "values"] = "none"
    consistency: Literal["bernoulli", "poisson"] = "bernoulli"
    overflow: float = 1.0
    path: float = 0.0
    path_loss: Literal["bernoulli", "poisson"] = "bernoulli"
    masks: Literal["correct", "official"] = "correct"
    lookahead: float = 0.0


@dataclass
class OracleLoss:
    """Terms of the loss for each rollout, ``[B]`` in nats, before weighting over rollouts.

    ``consistency_B`` is the published f_KL, whatever divergence the regulariser trains with.
    """

    total_B: Tensor
    token_ce_B: Tensor
    terminal_ce_B: Tensor
    path_B: Tensor
    lookahead_B: Tensor
    consistency_B: Tensor
    num_links_B: Tensor


def oracle_loss(
    values: TokenValues,
    score_B: Tensor,
    mask_BT: Tensor,
    finished_B: Tensor | None,
    weights: LossWeights,
    log_root_B: Tensor | None = None,
    telescoped: bool = False,
    lookahead_B: Tensor | None = None,
) -> OracleLoss:
    """Loss of every rollout.

    Args:
        score_B: oracle scores C.
        mask_BT: 1 where a response token is real, the end-of-sequence token included.
        finished_B: whether the last real token is the end of sequence; needed by the official masks only.
        log_root_B: log R(c) where it is known; the path starts from the first V otherwise.
        telescoped: whether the values are telescoped ones already (Hard), which are not bounded by 1.
        lookahead_B: the lookahead term, which needs more than values; None where nothing is trained.
    """
    rows_BT, links_BT = _masks(mask_BT, finished_B, weights.masks)
    log_r_BT, log_v_BT = values.log_r_BT.float(), values.log_v_BT.float()
    score_B1 = score_B[:, None].to(log_r_BT.dtype)
    direct = _against_oracle(log_r_BT, score_B1, rows_BT, weights.path_loss if telescoped else "bernoulli")
    path_B = torch.zeros_like(score_B1[:, 0])
    if weights.path:
        log_root_B1 = log_v_BT[:, :1] if log_root_B is None else log_root_B[:, None].to(log_r_BT.dtype)
        path_BT = log_root_B1 + ((log_r_BT - log_v_BT) * rows_BT).cumsum(1)
        path_B = _against_oracle(path_BT, score_B1, rows_BT, weights.path_loss).weighted(weights)
    # links_BT[i] ties the value before token i to the value after token i - 1.
    first_BT, second_BT = _sides(log_v_BT, log_r_BT, weights)
    consistency_B = regulariser_B = (bernoulli_kl(first_BT, second_BT) * links_BT[:, 1:]).sum(1)
    if weights.consistency == "poisson":
        regulariser_B = (poisson_ce(second_BT, first_BT.exp()) * links_BT[:, 1:]).sum(1)
    total_B = direct.weighted(weights) + weights.path * path_B + weights.regulariser * regulariser_B
    if weights.value_ce:
        total_B = total_B + weights.value_ce * (bernoulli_ce(log_v_BT, score_B1) * rows_BT).sum(1)
    lookahead_B = torch.zeros_like(path_B) if lookahead_B is None else lookahead_B
    return OracleLoss(
        total_B=total_B + weights.lookahead * lookahead_B,
        token_ce_B=direct.token_ce_B,
        terminal_ce_B=direct.terminal_ce_B,
        path_B=path_B,
        lookahead_B=lookahead_B,
        consistency_B=consistency_B,
        num_links_B=links_BT[:, 1:].sum(1),
    )


class _Verdict(NamedTuple):
    """What the oracle has to say about values along each rollout, ``[B]``."""

    token_ce_B: Tensor
    terminal_ce_B: Tensor
    overflow_B: Tensor

    def weighted(self, weights: LossWeights) -> Tensor:
        return (
            weights.token_ce * self.token_ce_B
            + weights.terminal_ce * self.terminal_ce_B
            + weights.overflow * self.overflow_B
        )


def _against_oracle(log_r_BT: Tensor, score_B1: Tensor, rows_BT: Tensor, loss: str) -> _Verdict:
    ce_BT = (poisson_ce if loss == "poisson" else bernoulli_ce)(log_r_BT, score_B1) * rows_BT
    terminal_BT = rows_BT * (rows_BT.flip(1).cumsum(1).flip(1) == 1)
    # The Poisson loss pulls back what exceeds 1 by itself.
    over_BT = log_r_BT.clamp_min(0.0).square() if loss == "bernoulli" else torch.zeros_like(log_r_BT)
    overflow_B = (over_BT * rows_BT).sum(1)
    return _Verdict(ce_BT.sum(1), (ce_BT * terminal_BT).sum(1), overflow_B)


def _sides(log_v_BT: Tensor, log_r_BT: Tensor, weights: LossWeights) -> tuple[Tensor, Tensor]:
    """The arguments of the regulariser's divergence, in order, ``[B, T - 1]`` each."""
    if weights.detach == "values":
        # log R - log V is the log-ratio of the sampled token, whatever the parameterisation.
        log_r_BT = log_v_BT.detach() + (log_r_BT - log_v_BT)
    expected, predicted = log_v_BT[:, 1:], log_r_BT[:, :-1]
    if weights.detach in ("expected", "values"):
        expected = expected.detach()
    elif weights.detach == "predicted":
        predicted = predicted.detach()
    return (expected, predicted) if weights.direction == "expected_first" else (predicted, expected)


def _masks(mask_BT: Tensor, finished_B: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """Rows that enter the cross entropies, and rows whose V is tied to the row before."""
    rows_BT = mask_BT.float()
    if kind == "official":
        if finished_B is None:
            raise ValueError("the official masks need to know which rollouts are finished")
        # The published loop drops the end-of-sequence row, and its unshifted mask drops the row of the first token.
        is_last_BT = rows_BT.flip(1).cumsum(1).flip(1) == 1
        rows_BT = rows_BT * ~(is_last_BT & (rows_BT > 0) & finished_B.bool()[:, None])
        rows_BT = torch.cat([torch.zeros_like(rows_BT[:, :1]), rows_BT[:, 1:]], 1)
    links_BT = torch.cat([torch.zeros_like(rows_BT[:, :1]), rows_BT[:, 1:] * rows_BT[:, :-1]], 1)
    return rows_BT, links_BT
