"""Lookahead targets on their way into batches: verdicts where the text ends, the critic's word elsewhere, padding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from datamodule_case import make_data

from datamodules.lookahead_targets import gap_closed_by, target_gain
from datamodules.tasks import Task
from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.control.prefix_critic import PrefixCritic

FLOOR = 0.25


@pytest.mark.parametrize(("truncated", "candidates"), [("fail", 2), ("fail", 5), ("score", 5)])
def test_targets_where_the_response_ends(
    shared_cache: Path, base: BaseLM, task: Task, truncated: str, candidates: int
) -> None:
    """At the last position every value is a verdict: that of the text, or failure where the budget cuts it off.

    All 5 tokens as candidates leave nothing over; of 2, what is left over is cut off too.
    """
    settings = {
        "objective__lookahead__weight": 1.0,
        "objective__lookahead__floor": FLOOR,
        "rollouts__truncated": truncated,
    }
    data = make_data(shared_cache, base, task, **settings, targets__candidates=candidates)
    rows = np.arange(len(data.rows))
    batch = data.train_batch(rows, float(len(rows)))
    assert batch.candidate_BTK is not None and batch.candidate_log_target_BTL is not None
    assert batch.value_BT is not None
    # Relative to their mean, which is below 1; none falls below the floor.
    assert float(batch.value_BT.sum()) == pytest.approx(int(batch.response_mask_BT.sum()), rel=1e-4)
    smallest, largest = (float(f(batch.value_BT[batch.response_mask_BT.bool()])) for f in (torch.min, torch.max))
    assert FLOOR < smallest < 1 < largest and largest / smallest <= 1 / FLOOR
    last = data.config.rollouts.max_new_tokens - 1
    checked = 0
    for row in range(len(rows)):
        length = int(batch.response_mask_BT[row].sum())
        assert not batch.value_BT[row, length:].any() and not batch.candidate_BTK[row, length:].any()
        assert (batch.value_BT[row, :length] > 0).all()
        total_T = batch.candidate_log_target_BTL[row, :length].exp().sum(-1)
        torch.testing.assert_close(total_T, torch.ones(length))
        if length <= last:
            continue
        checked += 1
        prefix = batch.response_BT[row, :last].tolist()
        tokens = batch.candidate_BTK[row, last].tolist()
        verdict = []
        for token in tokens:
            ends = token in base.eos_ids
            text = base.decode(prefix if ends else [*prefix, token])
            judged = ends or truncated == "score"
            verdict.append(float(task.oracle([data.task.train_prompts[0]], [text])) if judged else 0.0)
        prompt = data.task.train_prompts[int(data.rows.prompt_index_N[row])]
        response = batch.response_BT[row, :length].tolist()
        single = RolloutBatch.unjudged(*base.encode_prompts([prompt]), [0], [response])
        p_K = base.head.logits(base.states(single).hidden_BTD[0, last]).softmax(-1)[tokens]
        weighted_K = p_K * (FLOOR + (1 - FLOOR) * torch.tensor(verdict))
        found_K = batch.candidate_log_target_BTL[row, last, :-1].exp()
        total = weighted_K.sum() + (1 - p_K.sum()) * FLOOR
        torch.testing.assert_close(found_K, weighted_K / total, rtol=0, atol=1e-4)
    assert checked > 3
    assert 0 < data.summary["targets/critic_ce"] < 1


def test_held_out_batches_and_other_objectives_have_none(shared_cache: Path, base: BaseLM, task: Task) -> None:
    with_it = make_data(shared_cache, base, task, objective__lookahead__weight=1.0, objective__lookahead__candidates=5)
    without = make_data(shared_cache, base, task)
    assert next(iter(with_it.val_dataloader())).candidate_BTK is None
    assert next(iter(without.train_dataloader())).candidate_BTK is None
    assert "targets/critic_ce" not in without.summary


def test_rollouts_of_one_token_say_nothing_about_endings() -> None:
    tokens = [np.array([token]) for token in (0, 1, 2, 1)]
    zeros = [np.zeros(1, dtype=np.float32)] * 4
    score_N, ones = np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4)
    critic = PrefixCritic(zeros, tokens, score_N, ones, np.zeros(4, int), eos_ids=[0], max_new_tokens=3, seed=0)
    assert torch.isfinite(critic.before(0, zeros[0], tokens[0])).all()


def test_the_gain_of_a_target_along_a_rollout() -> None:
    log_p_TK, candidate_TK = np.log([[0.5, 0.3], [0.6, 0.1]]), np.array([[4, 7], [2, 4]])
    log_target_TL = np.log([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    gain = target_gain(log_target_TL, log_p_TK, candidate_TK, np.array([7, 9]))
    assert gain == pytest.approx(np.log(0.6 / 0.3) + np.log(0.6 / 0.3))
    assert target_gain(log_target_TL, log_p_TK, candidate_TK, np.array([4, 2])) == pytest.approx(
        np.log(0.1 / 0.5) + np.log(0.2 / 0.6)
    )


def test_the_gap_that_a_target_closes(shared_cache: Path, base: BaseLM, task: Task) -> None:
    data = make_data(shared_cache, base, task, objective__lookahead__weight=1.0, objective__lookahead__candidates=5)
    assert np.isfinite(data.summary["targets/gap_closed"])
    rows = dataclasses.replace(
        data.rows,
        prompt_index_N=np.array([0, 0, 0, 0, 5, 5]),
        score_N=np.array([1.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
        weight_N=np.ones(6),
    )
    gain_N = np.array([0.5, -9.0, 0.7, -9.0, -9.0, -9.0])
    # -log R of the first prompt is estimated as 1/3 + 1/4; the second has no accepted rollout.
    assert gap_closed_by(gain_N, rows) == pytest.approx(0.6 / (1 / 3 + 1 / 4))
    assert gap_closed_by(gain_N, dataclasses.replace(rows, score_N=np.zeros(6))) is None
