"""Numbers of an optimiser step: weighted means and maxima over its micro-batches, by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_modules.step_numbers import StepNumbers


def test_means_are_weighted_over_all_micro_batches() -> None:
    numbers = StepNumbers()
    numbers.mean("loss", torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0]))
    numbers.mean("loss", torch.tensor([10.0]), torch.tensor([4.0]))
    numbers.mean("length", torch.tensor([2, 4]))
    numbers.mean("length", torch.tensor([9]))
    assert numbers.reduce() == {"loss": pytest.approx(50 / 8), "length": pytest.approx(5.0)}


def test_the_largest_of_all_micro_batches() -> None:
    numbers = StepNumbers()
    numbers.largest("ratio", torch.tensor([0.5, 2.0]))
    numbers.largest("ratio", torch.tensor([-1.0]))
    assert numbers.reduce() == {"ratio": 2.0}


def test_a_step_begins_with_nothing() -> None:
    numbers = StepNumbers()
    numbers.mean("loss", torch.tensor([1.0]))
    numbers.reduce()
    numbers.mean("loss", torch.tensor([7.0]))
    assert numbers.reduce() == {"loss": 7.0}
    assert numbers.reduce() == {}


def test_a_mean_of_no_weight_is_zero_and_no_error() -> None:
    numbers = StepNumbers()
    numbers.mean("loss", torch.tensor([1.0]), torch.tensor([0.0]))
    assert numbers.reduce() == {"loss": 0.0}


def test_gradients_do_not_outlive_the_step() -> None:
    numbers = StepNumbers()
    numbers.mean("loss", torch.ones(2, requires_grad=True) * 2)
    assert not numbers._sums["loss"].requires_grad
