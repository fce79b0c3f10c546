"""The contract of a method.

Axes: B rollouts, T response tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from helpers import batch_of

from contracts.parameters import of_tokens, perturb, teacher_forced
from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from lightning_modules.build_method import build_method
from lightning_modules.rollout_method import RolloutMethod
from lightning_modules.step_numbers import StepNumbers
from workbench.settings.config import Config
from workbench.settings.derived import has_norm_head, method_of

PREFIXES = ("train/", "reg/", "norm/")
"""What the names of a step's numbers begin with."""


class MethodCase(NamedTuple):
    """A method under test.

    Attributes:
        config: a configuration that names it and what it trains.
        base: makes the base anew.
    """

    config: Config
    base: Callable[[], BaseLM]


def moved(case: MethodCase) -> tuple[RolloutMethod, RolloutBatch]:
    """Return a method whose weights are away from their start, in eval mode, and a batch."""
    base = case.base()
    batch = batch_of(base)
    method = build_method(copy.deepcopy(case.config), base).eval()
    perturb(parameter for parameter in method.parameters() if parameter.requires_grad)
    return method, batch


def row_alone(batch: RolloutBatch, row: int) -> RolloutBatch:
    """Return a batch of one rollout without padding."""
    prompt = int(batch.prompt_of_row_B[row])
    real_S, real_T = batch.prompt_mask_PS[prompt].bool(), batch.response_mask_BT[row].bool()
    return RolloutBatch(
        prompt_ids_PS=batch.prompt_ids_PS[prompt, real_S][None],
        prompt_mask_PS=batch.prompt_mask_PS[prompt, real_S][None],
        prompt_of_row_B=torch.zeros(1, dtype=torch.long),
        response_BT=batch.response_BT[row, real_T][None],
        response_mask_BT=batch.response_mask_BT[row, real_T][None],
        log_p_BT=batch.known_log_p_BT[row, real_T][None],
        score_B=batch.score_B[row : row + 1],
        weight_B=batch.weight_B[row : row + 1],
        root_B=batch.root_B[row : row + 1],
        weight_total=1.0,
    )


def gives_each_rollout_a_loss(case: MethodCase) -> None:
    """Check that the loss is finite, of shape [B], and free of the weights, which the training step applies."""
    method, batch = moved(case)
    loss_B = method.terms(batch).loss_B
    assert loss_B.shape == (batch.num_rows,) and loss_B.isfinite().all()
    heavier = dataclasses.replace(batch, weight_B=2 * batch.weight_B, weight_total=2 * batch.weight_total)
    torch.testing.assert_close(method.terms(heavier).loss_B, loss_B, rtol=0, atol=1e-6)
    if "references" in method_of(case.config).rows:
        unknown = dataclasses.replace(batch, log_p_BT=None)
        torch.testing.assert_close(method.terms(unknown).loss_B, loss_B, rtol=0, atol=1e-6)


def a_batch_is_its_rows_one_by_one(case: MethodCase) -> None:
    """Check that neither padding nor the other rows of a batch change a loss."""
    method, batch = moved(case)
    alone_B = torch.cat([method.terms(row_alone(batch, row)).loss_B for row in range(batch.num_rows)])
    torch.testing.assert_close(method.terms(batch).loss_B, alone_B, rtol=1e-4, atol=1e-5)


def trains_what_it_says(case: MethodCase) -> None:
    """Check that the loss has a gradient to every trained weight, norm head included, and to no other."""
    method, batch = moved(case)
    method.train().terms(batch).loss_B.sum().backward()
    trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    reached = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert reached == set(trained) and trained
    assert all(parameter.grad.isfinite().all() for parameter in trained.values() if parameter.grad is not None)
    assert any(parameter.grad.any() for parameter in method.scores.trained().values() if parameter.grad is not None)
    assert (method.norm_head is not None) == has_norm_head(case.config)


def evaluates_the_model_that_decodes(case: MethodCase) -> None:
    """Check that log q of held-out rollouts is that of the controlled model, and log p that of the base."""
    method, batch = moved(case)
    held_out = method.terms(batch).held_out
    log_q_BT = of_tokens(teacher_forced(method.controlled(1.0), method.base))
    torch.testing.assert_close(held_out.log_q_BT.detach() * batch.response_mask_BT, log_q_BT, rtol=0, atol=1e-4)
    assert held_out.log_p_BT is not None
    torch.testing.assert_close(held_out.log_p_BT, batch.log_p_BT, rtol=0, atol=1e-4)


def predicts_r_if_the_table_says_so(case: MethodCase) -> None:
    """Check that there is a log R after each token where the row's blocks name the oracle, and nowhere else."""
    method, batch = moved(case)
    terms, predicts_r = method.terms(batch), method_of(case.config).predicts_r
    for log_r_BT in (terms.log_r_BT, terms.held_out.log_r_BT):
        assert (log_r_BT is not None) == predicts_r
        assert log_r_BT is None or (log_r_BT.shape == batch.response_BT.shape and log_r_BT.isfinite().all())
    assert (terms.held_out.consistency_B is not None) == predicts_r


def logs_finite_numbers(case: MethodCase) -> None:
    """Check that what a step logs is finite, under names that begin with a known prefix."""
    method, batch = moved(case)
    numbers = StepNumbers()
    for _ in range(2):
        method.measure(method.terms(batch), batch, numbers)
    found = method.summarise(numbers.reduce())
    assert {"train/loss", "train/positives_share"} <= set(found)
    assert all(name.startswith(PREFIXES) and math.isfinite(value) for name, value in found.items()), found


def a_checkpoint_holds_what_was_trained(case: MethodCase) -> None:
    """Check that the state is the trained weights alone, and brings another instance to the same losses."""
    method, batch = moved(case)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    assert set(state) == {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    config = copy.deepcopy(case.config)
    config.seed += 1
    fresh = build_method(config, case.base()).eval()
    fresh.load_state_dict(state, strict=False)
    torch.testing.assert_close(fresh.terms(batch).loss_B, method.terms(batch).loss_B, rtol=0, atol=1e-5)


CHECKS = (
    gives_each_rollout_a_loss,
    a_batch_is_its_rows_one_by_one,
    trains_what_it_says,
    evaluates_the_model_that_decodes,
    predicts_r_if_the_table_says_so,
    logs_finite_numbers,
    a_checkpoint_holds_what_was_trained,
)
