"""Targets of the lookahead objective for q, computed from the candidates that are stored with every token.

Axes: T tokens of a rollout, K candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import digamma

from datamodules.training_rows import LookaheadTarget, Rows, rows_by_prompt
from dinado.control.prefix_critic import PrefixCritic
from dinado.objectives.lookahead import lookahead_targets
from dinado.rollouts.rollout_table import Rollouts
from workbench.settings.objective import LookaheadBlock


def with_lookahead(
    rows: Rows,
    rollouts: Rollouts,
    settings: LookaheadBlock,
    eos_ids: Sequence[int],
    *,
    budget: int,
    judge_truncated: bool,
    seed: int,
) -> tuple[Rows, dict[str, float]]:
    """Return the rows with their targets, and metrics of the critic that the targets come from.

    Args:
        budget: largest number of tokens in a response.
        judge_truncated: whether the oracle scores a truncated response; otherwise it counts as failed.
        seed: names the random stream of the critic.
    """
    found = [rollouts.lookahead(row) for row in range(len(rows))]
    tokens = [rollouts.response(row)[0] for row in range(len(rows))]
    critic = PrefixCritic(
        [row.progress_T for row in found],
        tokens,
        rows.score_N,
        rows.weight_N,
        rows.prompt_index_N,
        eos_ids=eos_ids,
        max_new_tokens=budget,
        seed=seed,
    )
    targets = []
    for row, (progress_T, candidate_TK, log_p_TK, outlook_TK) in enumerate(found):
        last_T1 = np.arange(1, len(progress_T) + 1)[:, None] == budget
        ends_TK = torch.from_numpy(np.isin(candidate_TK, list(eos_ids)) | last_T1)
        value_TK = torch.where(ends_TK, torch.tensor(outlook_TK), critic.after(row, outlook_TK, candidate_TK))
        other_T = critic.after_others(row, progress_T)
        if not judge_truncated:
            other_T[torch.from_numpy(last_T1[:, 0])] = 0.0
        log_target_TL = lookahead_targets(
            torch.tensor(log_p_TK),
            value_TK,
            other_T,
            settings.sharpness,
            settings.floor,
        )
        value_T = settings.floor + (1 - settings.floor) * critic.before(row, progress_T, tokens[row])
        targets.append(LookaheadTarget(candidate_TK.astype(np.int64), log_target_TL.numpy(), value_T.numpy()))
    gain_N = np.array(
        [
            target_gain(target.log_target_TL, log_p_TK, target.candidate_TK, tokens_T)
            for target, (_, _, log_p_TK, _), tokens_T in zip(targets, found, tokens, strict=True)
        ]
    )
    mean = _mean_value(targets, rows.weight_N)
    targets = [target._replace(value_T=target.value_T / mean) for target in targets]
    numbers = {"targets/critic_ce": critic.ce, "targets/prompt_ce": critic.prompt_ce}
    if (closed := gap_closed_by(gain_N, rows)) is not None:
        numbers["targets/gap_closed"] = closed
    return dataclasses.replace(rows, lookahead_N=targets), numbers


def target_gain(
    log_target_TL: np.ndarray, log_p_TK: np.ndarray, candidate_TK: np.ndarray, tokens_T: np.ndarray
) -> float:
    """Compute log target - log p of a rollout, in nats, with all tokens that are no candidate as one."""
    is_drawn_TK = candidate_TK == tokens_T[:, None]
    place_T = np.where(is_drawn_TK.any(1), is_drawn_TK.argmax(1), candidate_TK.shape[1])[:, None]
    others_T1 = np.log1p(-np.exp(log_p_TK.astype(np.float64)).sum(1, keepdims=True).clip(max=1 - 1e-6))
    log_p_TL = np.concatenate([log_p_TK, others_T1], 1)
    return float((np.take_along_axis(log_target_TL, place_T, 1) - np.take_along_axis(log_p_TL, place_T, 1)).sum())


def gap_closed_by(gain_N: np.ndarray, rows: Rows) -> float | None:
    """Estimate the share of KL(q*||p) that a perfect fit of the target closes, over prompts with accepted rollouts.

    Args:
        gain_N: log target - log p of each rollout.
    """
    gains, gaps = [], []
    for rows_K in rows_by_prompt(rows.prompt_index_N):
        weight_K, score_K = rows.weight_N[rows_K].astype(np.float64), rows.score_N[rows_K].astype(np.float64)
        if (accepted := float((weight_K * score_K).sum())) > 0:
            gains.append(float((weight_K * score_K * gain_N[rows_K]).sum()) / accepted)
            # Of whole verdicts with weight 1 these are the harmonic numbers of the held-out estimate.
            gaps.append(float(digamma(weight_K.sum() + 1) - digamma(accepted + 1)))
    return sum(gains) / sum(gaps) if sum(gaps) > 0 else None


def _mean_value(targets: Sequence[LookaheadTarget], weight_N: np.ndarray) -> float:
    """Compute the weighted mean of the values over all tokens.

    Values are divided by it, since the objective's weight would mean less for a rare oracle otherwise.
    """
    value_N = np.array([target.value_T.sum() for target in targets])
    length_N = np.array([len(target.value_T) for target in targets])
    return float((weight_N * value_N).sum() / (weight_N * length_N).sum())
