"""Optimiser steps of so many response tokens: filled, the same on any number of processes, every row once an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datamodule_case import expected_rows, make_data, rows_of, steps
from hypothesis import assume, given
from hypothesis import strategies as st

from datamodules.batch_plan import BatchPlan, Budget, micro_batches, split_step
from datamodules.tasks import Task
from dinado.bases.causal import BaseLM
from dinado.errors import DataError
from workbench.settings.config import OptimConfig

TOKENS = 60
"""Responses have 1 to 6 tokens."""


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_step_is_the_same_on_any_number_of_processes(
    shared_cache: Path, base: BaseLM, task: Task, share: float
) -> None:
    plans = []
    for world, micro in [(1, None), (1, 20), (2, 30), (2, 15), (4, None), (8, None)]:
        per_step: list[list] = [[] for _ in range(9)]
        for rank in range(world):
            settings = {"optim__batch_tokens": TOKENS, "optim__micro_tokens": micro, "targets__positives_share": share}
            data = make_data(shared_cache, base, task, rank, world, **settings)
            for step, batches in enumerate(steps(data)):
                assert len(batches) == data.accumulation == -(-TOKENS // (world * (micro or TOKENS)))
                assert all(batch.num_rows for batch in batches)
                assert all(int(batch.response_mask_BT.sum()) <= (micro or TOKENS) + 6 for batch in batches)
                per_step[step] += batches
        for batches in per_step:
            tokens = sum(int(batch.response_mask_BT.sum()) for batch in batches)
            assert TOKENS - (12 if share else 6) < tokens <= TOKENS
            total = sum(float(batch.weight_B.sum()) for batch in batches)
            assert all(batch.weight_total == pytest.approx(total, rel=1e-6) for batch in batches)
        plans.append([sorted(row for batch in batches for row in rows_of(batch)) for batches in per_step])
    assert all(plan == plans[0] for plan in plans)
    assert len({len(rows) for rows in plans[0]}) > 1, "steps differ in rows"


def test_every_row_once_an_epoch(shared_cache: Path, base: BaseLM, task: Task) -> None:
    data = make_data(shared_cache, base, task, optim__batch_tokens=TOKENS, optim__steps=40)
    stream = [row for batches in steps(data) for batch in batches for row in rows_of(batch)]
    rows = Counter(expected_rows(data))
    epochs = len(stream) // rows.total()
    assert epochs > 3
    seen = Counter(stream)
    assert all(epochs * count <= seen[row] <= (epochs + 1) * count for row, count in rows.items())


def test_a_later_step_does_not_depend_on_having_asked_for_earlier_ones(
    shared_cache: Path, base: BaseLM, task: Task
) -> None:
    rows = make_data(shared_cache, base, task).rows
    asked, fresh = (BatchPlan(rows, np.arange(len(rows)), Budget(TOKENS, True), 4, seed=0) for _ in range(2))
    found = [asked.step(index) for index in range(12)]
    assert (fresh.step(11) == found[11]).all()


def test_a_share_of_positives_counts_in_tokens(shared_cache: Path, base: BaseLM, task: Task) -> None:
    settings = {"optim__batch_tokens": TOKENS, "targets__positives_share": 0.5, "optim__steps": 300}
    data = make_data(shared_cache, base, task, **settings)
    accepted = float((make_data(shared_cache, base, task).rows.score_N > 0.5).mean())
    batches = list(data.train_dataloader())
    tokens = [int((batch.response_mask_BT.sum(1) * batch.score_B).sum()) for batch in batches]
    assert max(tokens) <= TOKENS / 2 and np.mean(tokens) > TOKENS / 2 - 6
    weighed = sum(float((batch.weight_B * batch.score_B).sum()) for batch in batches)
    assert weighed / sum(float(batch.weight_B.sum()) for batch in batches) == pytest.approx(accepted, abs=0.03)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_parts_hold_about_as_many_tokens(lengths: list[int], world: int, micro: int) -> None:
    length_B = np.array(sorted(lengths))
    parts = world * micro
    assume(length_B.sum() >= parts * length_B.max())
    row_B = np.arange(len(length_B))
    found = [split_step(row_B, rank, world, micro, length_B) for rank in range(world)]
    assert all(len(mine) == micro and all(len(part) for part in mine) for mine in found)
    assert sorted(np.concatenate([part for mine in found for part in mine])) == row_B.tolist()
    for part in (part for mine in found for part in mine):
        assert abs(length_B[part].sum() - length_B.sum() / parts) <= 2 * length_B.max()


def test_number_of_micro_batches() -> None:
    assert micro_batches(OptimConfig(batch_tokens=1000, micro_tokens=300), 1) == 4
    assert micro_batches(OptimConfig(batch_tokens=1000, micro_tokens=300), 2) == 2
    assert micro_batches(OptimConfig(batch_tokens=1000), 8) == 1
    assert micro_batches(OptimConfig(batch_size=32, micro_batch=8), 2) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim__batch_tokens": 5}, "cut into 1 is too few for responses of up to 6 tokens"),
        ({"optim__batch_tokens": 12, "optim__micro_tokens": 4}, "cut into 3 is too few"),
        ({"optim__batch_tokens": 20, "optim__micro_tokens": 6}, "cut into 4 is too few"),
        ({"optim__batch_tokens": 20, "targets__positives_share": 0.1}, "leaves 2 tokens of a step to accepted"),
        ({"optim__batch_tokens": 9999}, r"tokens of training rollouts, fewer than optim\.batch_tokens=9999"),
        ({"optim__batch_tokens": 130, "targets__positives_share": 0.9}, r"asks for 117 tokens of accepted rollouts"),
    ],
)
def test_budgets_that_cannot_be_filled(
    shared_cache: Path, base: BaseLM, task: Task, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_data(shared_cache, base, task, **settings)
