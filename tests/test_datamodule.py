"""Batches: the same optimiser steps on any number of processes, every row once an epoch, exact resuming."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datamodule_case import (
    TEXTS,
    expected_rows,
    make_config,
    make_data,
    rows_of,
    steps,
    words_task,
)

from datamodules.batch_plan import BatchPlan, Budget, accumulation
from datamodules.collation import held_out_batches
from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.run_stores import RunStores
from datamodules.tasks import Task
from datamodules.training_rows import Rows
from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_markov
from dinado.batch import RolloutBatch
from dinado.errors import ConfigError, DataError, StoreError
from dinado.prompt import Prompt
from dinado.rollouts.collect import collect


@pytest.mark.parametrize("weights", ["uniform", "importance"])
def test_one_by_eight_is_two_by_four_is_eight_by_one(
    shared_cache: Path, base: BaseLM, task: Task, weights: str
) -> None:
    settings = {"targets__weights": weights, "rollouts__temperature": 1.3}
    plans = []
    for world, micro in [(1, 2), (2, 2), (4, 2), (8, 2), (1, None), (2, 4), (8, None)]:
        per_step: list[list[RolloutBatch]] = [[] for _ in range(9)]
        for rank in range(world):
            data = make_data(shared_cache, base, task, rank, world, optim__micro_batch=micro, **settings)
            for step, batches in enumerate(steps(data)):
                assert len(batches) == 16 // world // (micro or 16 // world)
                assert all(batch.num_rows == (micro or 16 // world) for batch in batches)
                per_step[step] += batches
        for batches in per_step:
            total = sum(float(batch.weight_B.sum()) for batch in batches)
            assert all(batch.weight_total == pytest.approx(total, rel=1e-6) for batch in batches)
        plans.append([sorted(row for batch in batches for row in rows_of(batch)) for batches in per_step])
    assert all(plan == plans[0] for plan in plans)
    assert any(row[4] != 1 for row in plans[0][0]) == (weights == "importance")


def test_every_row_once_an_epoch(shared_cache: Path, base: BaseLM, task: Task) -> None:
    """70 rows in steps of 16: 35 steps are 8 epochs."""
    data = make_data(shared_cache, base, task, optim__steps=35)
    seen = [rows_of(batch) for batches in steps(data) for batch in batches]
    rows = expected_rows(data)
    assert Counter(row for batch in seen for row in batch) == Counter(rows * 8)
    # An epoch ends within the fifth step, so four steps hold no row twice.
    assert not Counter(row for batch in seen[:4] for row in batch) - Counter(rows)
    assert seen[:4] != seen[4:8]


def test_rows_of_a_prompt_travel_together(shared_cache: Path, base: BaseLM, task: Task) -> None:
    """14 rows of each of 5 prompts give groups of 4, 4, 4 and 2; a step is at most a few of them."""
    rows = make_data(shared_cache, base, task).rows
    plan = BatchPlan(rows, np.arange(len(rows)), Budget(70), rows_per_prompt=4, seed=0)
    prompt_B = rows.prompt_index_N[plan.step(0)]
    runs = 1 + np.count_nonzero(np.diff(prompt_B))
    assert runs <= 5 * 4
    alone = BatchPlan(rows, np.arange(len(rows)), Budget(70), rows_per_prompt=1, seed=0)
    assert 1 + np.count_nonzero(np.diff(rows.prompt_index_N[alone.step(0)])) > 30


def test_micro_batches_hold_similar_lengths() -> None:
    length_N = np.array([1, 9] * 32)
    ones_N = np.ones(64, dtype=np.float32)
    rows = Rows(np.repeat(np.arange(64), 1), length_N, ones_N, ones_N, ones_N, lambda row: (ones_N, ones_N))
    for step in range(3):
        order = length_N[BatchPlan(rows, np.arange(64), Budget(16), 1, seed=0).step(step)]
        assert (np.diff(order) >= 0).all()


def test_the_seed_decides_the_order(shared_cache: Path, base: BaseLM, task: Task) -> None:
    def first(seed: int) -> list[tuple]:
        return rows_of(next(iter(make_data(shared_cache, base, task, seed=seed).train_dataloader())))

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_a_batch_is_what_the_base_would_read(shared_cache: Path, base: BaseLM, task: Task) -> None:
    batch = next(iter(make_data(shared_cache, base, task).train_dataloader()))
    log_p_BT = base.log_probs(batch)
    assert torch.allclose(log_p_BT, batch.log_p_BT, atol=1e-5)
    assert len(batch.prompt_ids_PS) == len(set(map(tuple, batch.prompt_ids_PS.tolist())))
    assert batch.prompt_mask_PS[:, -1].all() and batch.response_mask_BT[:, 0].all()
    ids_PS, _ = base.encode_prompts([task.train_prompts[i] for i in batch.prompt_index_P.tolist()])
    assert torch.equal(ids_PS, batch.prompt_ids_PS)


def test_weights_and_roots(shared_cache: Path, base: BaseLM, task: Task) -> None:
    data = make_data(
        shared_cache, base, task, targets__weights="importance", targets__clip=0.0, rollouts__temperature=1.3
    )
    store = RunStores(data.config, base, task).needed()[0].read()
    for prompt in range(5):
        mine = data.rows.prompt_index_N == prompt
        w = np.exp(store.log_p_N - store.log_s_N)[mine]
        w = w / w.mean()
        np.testing.assert_allclose(data.rows.weight_N[mine], w, rtol=1e-4)
        c = store.score_N[mine]
        rate = (w * c).sum() / w.sum()
        # As many draws as have the same variance of the mean, spread / n.
        spread, variance = (w * (c - rate) ** 2).sum() / w.sum(), (w**2 * (c - rate) ** 2).sum() / w.sum() ** 2
        n = spread / variance if variance else w.sum() ** 2 / (w**2).sum()
        root = (n * rate + 0.5) / (n + 1)
        np.testing.assert_allclose(data.rows.root_N[mine], root, rtol=1e-4)
    weights = [data.rows.weight_N[data.rows.prompt_index_N == prompt].astype(float) for prompt in range(5)]
    ess = np.mean([w.sum() ** 2 / (w**2).sum() / 14 for w in weights])
    assert data.summary["weights/ess_fraction"] == pytest.approx(ess, rel=1e-4)
    assert data.summary["weights/max_share"] == pytest.approx(max(w.max() / w.sum() for w in weights), rel=1e-4)
    assert set(data.summary) > {"rollouts/success", "rollouts/distinct", "rollouts/truncated"}


def test_importance_weights_are_clipped(shared_cache: Path, base: BaseLM, task: Task) -> None:
    settings = {"targets__weights": "importance", "rollouts__temperature": 1.3}
    free = make_data(shared_cache, base, task, targets__clip=0.0, **settings)
    clipped = make_data(shared_cache, base, task, targets__clip=1.2, **settings)
    assert clipped.rows.weight_N.max() < free.rows.weight_N.max()
    assert clipped.summary["weights/ess_fraction"] > free.summary["weights/ess_fraction"]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("micro", [None, 1])
def test_every_held_out_rollout_once(
    shared_cache: Path, base: BaseLM, task: Task, world: int, micro: int | None
) -> None:
    seen, counts = [], set()
    for rank in range(world):
        size = world * (12 if world < 5 else 6)
        data = make_data(shared_cache, base, task, rank, world, optim__micro_batch=micro, optim__batch_size=size)
        batches = list(data.val_dataloader())
        assert len(batches) == len(data.val_dataloader())
        counts.add(len(batches))
        for batch in batches:
            if batch.weight_total == 0:
                assert not batch.weight_B.any() and batch.num_rows > 0
                continue
            assert batch.weight_total == float(batch.weight_B.sum())
            assert batch.prompt_index_P is not None
            # A whole prompt at a time, each on one process.
            assert (torch.bincount(batch.prompt_of_row_B) == 6).all()
            assert (batch.prompt_index_P % world == rank).all()
            seen += rows_of(batch)
    assert Counter(seen) == Counter(expected_rows(data, "val"))
    assert len(counts) == 1


def test_held_out_batches_take_whole_prompts() -> None:
    prompt_index_N = np.repeat([3, 5, 9], [4, 2, 4])
    batches = held_out_batches(prompt_index_N, 0, 2, rows=9)
    assert [batch.tolist() for batch in batches if batch is not None] == [[0, 1, 2, 3, 6, 7, 8, 9]]
    assert len(held_out_batches(prompt_index_N, 1, 2, rows=9)) == 1
    assert held_out_batches(prompt_index_N, 3, 4, rows=9) == [None]


def test_held_out_rollouts_are_draws_from_the_base(shared_cache: Path, base: BaseLM, task: Task) -> None:
    data = make_data(shared_cache, base, task, targets__weights="importance", rollouts__temperature=1.3)
    val = RunStores(data.config, base, task).needed()[1].read()
    assert (val.log_p_N == val.log_s_N).all() and (data.val_rows.weight_N == 1).all()


def test_sft_on_positives_sees_accepted_rollouts_only(shared_cache: Path, base: BaseLM, task: Task) -> None:
    data = make_data(shared_cache, base, task, method="sft", optim__batch_size=8, optim__steps=20)
    positives = [row for row in expected_rows(data) if row[3] == 1]
    assert 8 <= len(positives) < 70
    seen = Counter(row for batch in data.train_dataloader() for row in rows_of(batch))
    assert set(seen) == set(positives)


def test_a_share_of_positives_keeps_the_expectation(shared_cache: Path, base: BaseLM, task: Task) -> None:
    plain = make_data(shared_cache, base, task)
    data = make_data(shared_cache, base, task, targets__positives_share=0.25, optim__steps=200)
    accepted = float((plain.rows.score_N > 0.5).sum())
    batches = list(data.train_dataloader())
    for batch in batches[:5]:
        assert int((batch.score_B > 0.5).sum()) == 4
        assert batch.weight_total == pytest.approx(16.0)
        # Accepted rollouts count for as much as they do among all rollouts.
        share = float((batch.weight_B * batch.score_B).sum() / batch.weight_B.sum())
        assert share == pytest.approx(accepted / len(plain.rows), rel=1e-5)
    # Over many steps every row is seen in proportion to one over its weight.
    seen: Counter[tuple] = Counter()
    for batch in batches:
        for row in rows_of(batch):
            seen[row[:3]] += row[4]
    every = Counter(row[:3] for row in expected_rows(plain))
    for row, count in every.items():
        assert seen[row] / sum(seen.values()) == pytest.approx(count / len(plain.rows), rel=0.35)


def test_a_share_of_positives_that_cannot_be_had(shared_cache: Path, base: BaseLM, task: Task) -> None:
    with pytest.raises(DataError, match=r"targets.positives_share=0.9 asks for"):
        make_data(shared_cache, base, task, targets__positives_share=0.9, optim__batch_size=60)


def test_too_few_positives(shared_cache: Path, base: BaseLM, task: Task) -> None:
    with pytest.raises(
        DataError, match=r"of 70 training rollouts that the oracle accepts, fewer than optim.batch_size"
    ):
        make_data(shared_cache, base, task, method="sft", optim__batch_size=64)
    with pytest.raises(DataError, match="there are 70 training rollouts, fewer"):
        make_data(shared_cache, base, task, optim__batch_size=72)


def test_sft_on_references_needs_no_rollouts(cache: Path, base: BaseLM, task: Task) -> None:
    data = make_data(cache, base, task, method="sft", sft_data="references", optim__batch_size=10, optim__steps=2)
    assert len(list((cache / "rollouts").iterdir())) == 1
    first, second = (rows_of(batch) for batch in data.train_dataloader())
    expected = [(tuple(map(int, text.split())), reference) for text in TEXTS for reference in ((1, 2, 0), (2, 0))]
    assert Counter(row[:2] for row in first) == Counter(row[:2] for row in second) == Counter(expected)
    assert all(row[3] == row[4] == 1 for row in first)
    with pytest.raises(DataError, match="'train0' has no references"):
        bare = replace(task, train_prompts=[Prompt("train0", "1")])
        make_data(cache, base, bare, method="sft", sft_data="references")


def test_a_store_that_is_not_complete_is_refused(cache: Path, base: BaseLM, task: Task) -> None:
    with pytest.raises(StoreError, match="lacks 3 of 3 blocks"):
        RolloutDataModule(make_config(cache), base, task).setup("fit")


def test_validation_alone_needs_no_training_rollouts(cache: Path, base: BaseLM, task: Task) -> None:
    config = make_config(cache)
    collect(base, task.oracle, RunStores(config, base, task).needed()[1])
    data = RolloutDataModule(config, base, task)
    data.setup("validate")
    assert sum(batch.num_rows for batch in data.val_dataloader()) == 30


def test_everything_cut_off(cache: Path, task: Task) -> None:
    model, tokenizer = build_markov(5, seed=3)
    with torch.no_grad():
        model.lm_head.weight[0] = -50.0
    with pytest.raises(DataError, match=r"raise rollouts\.max_new_tokens"):
        make_data(cache, BaseLM(model, tokenizer), task, rollouts__truncated="drop")


@pytest.mark.parametrize(("batch", "micro", "world", "expected"), [(16, 2, 2, 4), (16, None, 4, 1), (16, 16, 1, 1)])
def test_accumulation(batch: int, micro: int | None, world: int, expected: int) -> None:
    assert accumulation(batch, micro, world) == expected


@pytest.mark.parametrize(("batch", "micro", "world"), [(16, None, 3), (16, 3, 1), (16, 16, 2)])
def test_steps_that_cannot_be_shared_out(batch: int, micro: int | None, world: int) -> None:
    with pytest.raises(ConfigError, match=r"optim\.(batch_size|micro_batch)="):
        accumulation(batch, micro, world)


@pytest.mark.parametrize("budget", ["even", "needed"])
def test_the_budget_of_a_later_round(shared_cache: Path, base: BaseLM, task: Task, budget: str) -> None:
    settings = {"rollouts__rounds": 2, "rollouts__budget": budget, "rollouts__base_share": 0.25}
    data = make_data(shared_cache, base, task, targets__weights="balance", **settings)
    of_base, of_model = data.next_round("some model")
    assert (of_base.spec.model, of_model.spec.model) == (None, "some model")
    counts = [of_base.spec.count(p) + of_model.spec.count(p) for p in range(len(task.train_prompts))]
    assert sum(counts) == 7 * len(counts), "half of 14 for each, on average"
    assert all(of_base.spec.count(p) == max(1, round(counts[p] / 4)) for p in range(len(counts)))
    accepted = [int(data.rows.score_N[data.rows.prompt_index_N == p].sum()) for p in range(len(counts))]
    assert len(set(accepted)) > 2, "prompts differ"
    if budget == "even":
        assert counts == [7] * len(counts) and of_base.spec.counts is None
    else:
        fewest, most = accepted.index(min(accepted)), accepted.index(max(accepted))
        assert counts[fewest] > 7 > counts[most]
    again = data.next_round("some model")
    assert [store.folder for store in again] == [of_base.folder, of_model.folder]


@pytest.mark.parametrize(("rounds", "prompts", "expected"), [(1, 64, 8), (4, 64, 16), (4, 256, 32), (4, 6, 8)])
def test_blocks_of_rounds_are_filled_with_more_prompts(
    tmp_path: Path, base: BaseLM, rounds: int, prompts: int, expected: int
) -> None:
    """Eight prompts with 16 rollouts each are sampled together, or as many rollouts of more prompts."""
    settings = {"rollouts__per_prompt": 16, "rollouts__block_size": 8, "rollouts__rounds": rounds}
    config = make_config(tmp_path, **settings, targets__weights="balance", rollouts__base_share=0.25)
    many = [Prompt(str(place), TEXTS[place % len(TEXTS)]) for place in range(prompts)]
    stores = RunStores(config, base, replace(words_task(), train_prompts=many))
    assert stores.train().spec.block_size == expected
    if rounds > 1:
        # One rollout of the base and three of the model: more prompts still, up to a quarter of them all.
        sizes = [store.spec.block_size for store in stores.later(1, "model", [4] * prompts)]
        assert sizes == [max(8, min(limit, -(-prompts // 4))) for limit in (128, 42)]
