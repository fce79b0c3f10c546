"""Terms of the oracle losses: cross entropies against the oracle's verdict, and forward consistency.

With R_i = R(c, y_<=i+1) after the token of row i and V_i = E_{p_i} R_i(v) before it:

* token cross entropy  sum_i BCE(R_i, C)           (NADO, Meng et al. 2022)
* value cross entropy  sum_i BCE(V_i, C): with the mean norm V_i = beta_i, and the norm alone learns from it
* terminal cross entropy  BCE(R_T, C)              (DiNADO, Lu et al. 2024)
* overflow  relu(log R)^2, for parameterisations that do not bound R by 1
* path  the same of the telescoped value R(c) prod_{j<=i} q_j / p_j. A step-wise norm can explain the oracle alone; here
  the ratios, which are what decodes, have to (our addition, docs/methods.md).
* forward consistency  sum_{i>=1} f_KL(V_i, R_{i-1}), or the generalised KL divergence of Poisson means; published NADO
  also ties V_0 to R_{-1}, the value after the prompt's last token

The lookahead term is in dinado/objectives/lookahead.py. All are sums over a rollout, in nats.
Axes: B rollouts, T response tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dinado.objectives.logspace import bernoulli_ce, bernoulli_kl, poisson_ce
from dinado.objectives.values import TokenValues

Divergence = Literal["bernoulli", "poisson"]


class Masks(NamedTuple):
    """Which positions enter the terms, ``[B, T]`` of 0 and 1.

    Attributes:
        rows_BT: rows of the cross entropies.
        links_BT: rows whose V is tied to the R of the row before.
    """

    rows_BT: Tensor
    links_BT: Tensor


def loss_masks(mask_BT: Tensor, finished_B: Tensor | None, kind: Literal["correct", "official"]) -> Masks:
    """Return the masks of all terms.

    Args:
        mask_BT: 1 where a response token is real, the end-of-sequence token included.
        finished_B: whether the last real token is the end of sequence; needed by ``official`` only.
        kind: ``official`` repeats the index arithmetic of the published code.
    """
    rows_BT = mask_BT.float()
    if kind == "official":
        if finished_B is None:
            raise ValueError("the official masks need to know which rollouts are finished")
        # The published loop drops the end-of-sequence row, and its unshifted mask drops the row of the first token.
        is_last_BT = rows_BT.flip(1).cumsum(1).flip(1) == 1
        rows_BT = rows_BT * ~(is_last_BT & (rows_BT > 0) & finished_B.bool()[:, None])
        rows_BT = torch.cat([torch.zeros_like(rows_BT[:, :1]), rows_BT[:, 1:]], 1)
    links_BT = torch.cat([torch.zeros_like(rows_BT[:, :1]), rows_BT[:, 1:] * rows_BT[:, :-1]], 1)
    return Masks(rows_BT, links_BT)


class Verdict(NamedTuple):
    """What the oracle's verdict says about values along each rollout, ``[B]``."""

    token_ce_B: Tensor
    terminal_ce_B: Tensor
    overflow_B: Tensor

    def weighted(self, token_ce: float, terminal_ce: float, overflow: float) -> Tensor:
        """Return the weighted sum of the terms, ``[B]``."""
        return token_ce * self.token_ce_B + terminal_ce * self.terminal_ce_B + overflow * self.overflow_B


def against_oracle(log_r_BT: Tensor, score_B1: Tensor, rows_BT: Tensor, loss: Divergence) -> Verdict:
    """Compare the values after each token with the verdict on the finished text."""
    ce_BT = (poisson_ce if loss == "poisson" else bernoulli_ce)(log_r_BT, score_B1) * rows_BT
    terminal_BT = rows_BT * (rows_BT.flip(1).cumsum(1).flip(1) == 1)
    # The Poisson loss pulls back what exceeds 1 by itself.
    over_BT = log_r_BT.clamp_min(0.0).square() if loss == "bernoulli" else torch.zeros_like(log_r_BT)
    overflow_B = (over_BT * rows_BT).sum(1)
    return Verdict(ce_BT.sum(1), (ce_BT * terminal_BT).sum(1), overflow_B)


def value_ce(log_v_BT: Tensor, score_B1: Tensor, rows_BT: Tensor) -> Tensor:
    """Cross entropy of the values before each token, ``[B]``."""
    return (bernoulli_ce(log_v_BT, score_B1) * rows_BT).sum(1)


def telescoped(values: TokenValues, rows_BT: Tensor, log_root_B: Tensor | None) -> Tensor:
    """log of R(c) prod_{j<=i} q_j / p_j, ``[B, T]``.

    Args:
        log_root_B: log R(c) where it is known; the first V otherwise.
    """
    log_r_BT, log_v_BT = values
    log_root_B1 = log_v_BT[:, :1] if log_root_B is None else log_root_B[:, None].to(log_r_BT.dtype)
    return log_root_B1 + ((log_r_BT - log_v_BT) * rows_BT).cumsum(1)


class Consistency(NamedTuple):
    """Forward consistency of each rollout, ``[B]``.

    Attributes:
        trained_B: in the divergence that is trained with.
        published_B: the published f_KL, whatever is trained with.
        num_links_B: how many pairs of neighbours are compared.
    """

    trained_B: Tensor
    published_B: Tensor
    num_links_B: Tensor


def forward_consistency(
    values: TokenValues,
    links_BT: Tensor,
    *,
    direction: Literal["expected_first", "predicted_first"] = "expected_first",
    detach: Literal["none", "expected", "predicted", "values"] = "none",
    divergence: Divergence = "bernoulli",
    log_prompt_B: Tensor | None = None,
) -> Consistency:
    """Compare the value before each token with the value after the token before it.

    Args:
        links_BT: ``links_BT[:, i]`` ties the value before token i to the value after token i - 1.
        direction: which of the two is the first argument of the divergence.
        detach: one side, or ``values``, which leaves the gradient to the log-ratio of the sampled token alone.
        divergence: of Bernoulli means, or the generalised KL divergence of Poisson means.
        log_prompt_B: log of the value after the prompt's last token, to be tied to the first V; -inf for none.
    """
    links_BL = links_BT[:, 1:]
    if log_prompt_B is not None:
        there_B1 = log_prompt_B.isfinite()[:, None].to(links_BT.dtype)
        links_BL = torch.cat([there_B1, links_BL], 1)
        # A value that is not there is replaced before its gradient, multiplied by 0, could become NaN.
        log_prompt_B = log_prompt_B.masked_fill(there_B1[:, 0] == 0, 0.0)
    first_BL, second_BL = _sides(*values, log_prompt_B, direction, detach)
    published_B = trained_B = (bernoulli_kl(first_BL, second_BL) * links_BL).sum(1)
    if divergence == "poisson":
        trained_B = (poisson_ce(second_BL, first_BL.exp()) * links_BL).sum(1)
    return Consistency(trained_B, published_B, links_BL.sum(1))


def _sides(
    log_r_BT: Tensor, log_v_BT: Tensor, log_prompt_B: Tensor | None, direction: str, detach: str
) -> tuple[Tensor, Tensor]:
    """Return the arguments of the divergence in order, ``[B, L]``; L is T with a prompt's value, T - 1 without."""
    if detach == "values":
        # log R - log V is the log-ratio of the sampled token, whatever the parameterisation.
        log_r_BT = log_v_BT.detach() + (log_r_BT - log_v_BT)
    expected, predicted = log_v_BT[:, 1:], log_r_BT[:, :-1]
    if log_prompt_B is not None:
        before_B1 = (log_prompt_B.detach() if detach == "values" else log_prompt_B)[:, None]
        expected, predicted = log_v_BT, torch.cat([before_B1, predicted], 1)
    if detach in ("expected", "values"):
        expected = expected.detach()
    elif detach == "predicted":
        predicted = predicted.detach()
    return (expected, predicted) if direction == "expected_first" else (predicted, expected)
