"""The likelihood term: its expectation over all rollouts is the loss of fine-tuning on accepted ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datamodule_case import make_data, words_task
from helpers import objective

from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_markov
from dinado.objectives.values import TokenValues
from lightning_modules.value_loss import value_loss
from lightning_modules.value_method import likelihood
from workbench.settings import loader


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return BaseLM(*build_markov(5, seed=3))


class Statistics:
    def __init__(self, log_q: torch.Tensor) -> None:
        self.log_q = log_q


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_all_rows_together_give_the_mean_over_accepted_ones(tmp_path: Path, base: BaseLM, share: float) -> None:
    data = make_data(tmp_path, base, words_task(), targets__positives_share=share)
    rows = data.rows
    # Every row as often as its stratum is drawn: the weights of a plan keep the expectation.
    batch = data.train_batch(np.arange(len(rows)), float(rows.weight_N.sum()))
    log_q_BT = -torch.rand(batch.response_BT.shape, generator=torch.Generator().manual_seed(0))
    term_B = likelihood(Statistics(log_q_BT), batch)  # type: ignore[arg-type]
    log_q_B = (log_q_BT * batch.response_mask_BT).sum(1)
    accepted_B = batch.score_B > 0.5
    expected = -log_q_B[accepted_B].mean()
    found = (term_B * batch.weight_B)[accepted_B]
    # The plan draws accepted rows more often than others, by what their weights are smaller.
    drawn = 1.0 if not share else share / float(accepted_B.float().mean())
    torch.testing.assert_close(found.sum() * drawn / len(rows), expected, rtol=1e-4, atol=1e-5)
    assert (term_B[~accepted_B] == 0).all()


def test_it_is_added_with_its_weight() -> None:
    values = TokenValues(torch.full((2, 3), -1.0), torch.full((2, 3), -1.2))
    term_B = torch.tensor([4.0, 0.0])
    arguments = (values, torch.tensor([1.0, 0.0]), torch.ones(2, 3), None)
    without = value_loss(*arguments, objective())
    weighted = value_loss(*arguments, objective(**{"likelihood.weight": 0.5}), likelihood_B=term_B)
    torch.testing.assert_close(weighted.total_B, without.total_B + 0.5 * term_B)


def test_it_is_enough_to_learn_from() -> None:
    words = ["objective.oracle.token_ce=0", "objective.oracle.terminal_ce=0", "objective.likelihood.weight=1"]
    loaded = loader.load("exact_world", ["method=dinado_hard", *words])
    assert loaded.config.objective.likelihood.weight == 1
