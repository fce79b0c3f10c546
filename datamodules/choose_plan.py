"""Choice of the batch plan of a run, and the checks that there are enough rows for it.

Axes: N rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from datamodules.batch_plan import BatchPlan, Budget, StratifiedPlan, stratum_weights
from datamodules.training_rows import Rows
from dinado.errors import DataError
from workbench.settings.config import Config
from workbench.settings.derived import row_source
from workbench.settings.run_settings import OptimConfig

POSITIVE_ABOVE = 0.5
"""A rollout with a score above this is accepted."""


def budget_of(optim: OptimConfig) -> Budget:
    """Return the configured size of an optimiser step."""
    return Budget(optim.batch_size) if optim.batch_tokens is None else Budget(optim.batch_tokens, by_tokens=True)


def plan_of(rows: Rows, config: Config, parts: int, index: int = 0) -> tuple[Rows, BatchPlan | StratifiedPlan]:
    """Return the rows, reweighted where the plan requires it, and the plan of optimiser steps over them.

    Args:
        parts: micro-batches of a step, over all processes.
        index: number of the round; every round is shuffled anew.

    Raises:
        DataError: too few rows to fill an optimiser step.
    """
    use_N = np.arange(len(rows))
    if row_source(config) == "accepted":
        use_N = np.flatnonzero(rows.score_N > POSITIVE_ABOVE)
    _check_enough(rows, use_N, config, parts)
    name = f"batches of round {index}" if index else "batches"
    if _is_stratified(config):
        return _stratified(rows, config, name)
    return rows, BatchPlan(rows, use_N, budget_of(config.optim), config.optim.rows_per_prompt, config.seed, name)


def _is_stratified(config: Config) -> bool:
    return config.targets.positives_share > 0 and row_source(config) == "rollouts"


def _stratified(rows: Rows, config: Config, name: str) -> tuple[Rows, StratifiedPlan]:
    """Fix the share of accepted rollouts in every step, and reweight rows to keep the expectation of the loss."""
    share, whole = config.targets.positives_share, budget_of(config.optim)
    accepted_N = rows.score_N > POSITIVE_ABOVE
    strata = [np.flatnonzero(accepted_N), np.flatnonzero(~accepted_N)]
    accepted = whole.share(share)
    budgets = [accepted, Budget(whole.amount - accepted.amount, accepted.by_tokens)]
    key, unit = _unit(whole)
    for rows_N, budget, kind in zip(strata, budgets, ("accepted", "rejected"), strict=True):
        there = _amount(rows, rows_N, budget)
        longest = int(rows.length_N[rows_N].max(initial=0))
        if budget.by_tokens and longest > budget.amount:
            raise DataError(
                f"targets.positives_share={share} leaves {budget.amount} tokens of a step to {kind} rollouts and "
                f"the longest has {longest}; change it, or raise optim.batch_tokens"
            )
        if there < budget.amount:
            raise DataError(
                f"targets.positives_share={share} asks for {budget.amount} {unit}{kind} rollouts "
                f"in a step and there are {there}; change it, lower optim.{key}, or raise rollouts.per_prompt"
            )
    counts = [budget.rows(rows.length_N[rows_N]) for rows_N, budget in zip(strata, budgets, strict=True)]
    weight_N = rows.weight_N.copy()
    for rows_N, weight in zip(strata, stratum_weights(strata, counts), strict=True):
        weight_N[rows_N] *= weight
    rows = dataclasses.replace(rows, weight_N=weight_N)
    return rows, StratifiedPlan(rows, strata, budgets, config.optim.rows_per_prompt, config.seed, name)


def _check_enough(rows: Rows, use_N: np.ndarray, config: Config, parts: int) -> None:
    """Raise :class:`DataError` unless distinct rows fill a step, with at least one for every micro-batch."""
    budget = budget_of(config.optim)
    count = _amount(rows, use_N, budget)
    if budget.by_tokens and count >= budget.amount:
        longest = int(rows.length_N[use_N].max())
        # Every stratum may fall short of its budget by almost one response.
        strata = 2 if _is_stratified(config) else 1
        if longest * (parts + strata if parts > 1 else 1) > budget.amount:
            raise DataError(
                f"optim.batch_tokens={budget.amount} cut into {parts} is too few for responses of up to "
                f"{longest} tokens; raise it"
            )
        return
    if not budget.by_tokens and count >= budget.amount:
        return
    name, fix = "training rollouts", "raise rollouts.per_prompt or data.train_prompts"
    if row_source(config) == "accepted":
        name = f"of {len(rows)} training rollouts that the oracle accepts"
    elif row_source(config) == "references":
        name, fix = "references", "raise data.train_prompts"
    if config.rollouts.rounds > 1:
        fix = "raise rollouts.per_prompt, which is shared out over the rounds"
    key, unit = _unit(budget)
    raise DataError(
        f"there are {count} {unit}{name}, fewer than optim.{key}={budget.amount}; {fix}, or lower optim.{key}"
    )


def _amount(rows: Rows, use_N: np.ndarray, budget: Budget) -> int:
    """Return the size of these rows in the unit of the budget: tokens or rows."""
    return int(rows.length_N[use_N].sum()) if budget.by_tokens else len(use_N)


def _unit(budget: Budget) -> tuple[str, str]:
    """Return the name of the setting behind a budget, and its unit as error messages give it."""
    return ("batch_tokens", "tokens of ") if budget.by_tokens else ("batch_size", "")
