"""The choice of a batch plan for the rows of a run, and whether there are enough rows for it.

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
"""Score above which a rollout counts as accepted."""


def budget_of(optim: OptimConfig) -> Budget:
    """Return the budget of an optimiser step."""
    return Budget(optim.batch_size) if optim.batch_tokens is None else Budget(optim.batch_tokens, by_tokens=True)


class PlanChoice:
    """Chooses which rows each optimiser step holds.

    Args:
        config: batch size, kind of rows, share of accepted rollouts, seed.
    """

    def __init__(self, config: Config) -> None:
        self._optim = config.optim
        self._source = row_source(config)
        self._share = config.targets.positives_share if self._source == "rollouts" else 0.0
        self._seed = config.seed
        self._rounds = config.rollouts.rounds
        self._budget = budget_of(config.optim)
        by_tokens = self._budget.by_tokens
        self._key, self._unit = ("batch_tokens", "tokens of ") if by_tokens else ("batch_size", "")

    def of(self, rows: Rows, parts: int, index: int = 0) -> tuple[Rows, BatchPlan | StratifiedPlan]:
        """Plan the steps over some rows; the rows come back weighted as the plan requires.

        Args:
            parts: micro-batches that all processes together make of a step.
            index: number of the round; every round shuffles anew.

        Raises:
            DataError: too few rows to fill an optimiser step.
        """
        use_N = np.arange(len(rows))
        if self._source == "accepted":
            use_N = np.flatnonzero(rows.score_N > POSITIVE_ABOVE)
        self._check_enough(rows, use_N, parts)
        name = f"batches of round {index}" if index else "batches"
        if self._share:
            return self._stratified(rows, name)
        return rows, BatchPlan(rows, use_N, self._budget, self._optim.rows_per_prompt, self._seed, name)

    def _stratified(self, rows: Rows, name: str) -> tuple[Rows, StratifiedPlan]:
        """Put a fixed number of accepted rollouts into every step, reweighted to keep the loss's expectation."""
        share, whole = self._share, self._budget
        accepted_N = rows.score_N > POSITIVE_ABOVE
        strata = [np.flatnonzero(accepted_N), np.flatnonzero(~accepted_N)]
        accepted = whole.share(share)
        budgets = [accepted, Budget(whole.amount - accepted.amount, accepted.by_tokens)]
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
                    f"targets.positives_share={share} asks for {budget.amount} {self._unit}{kind} rollouts in a step "
                    f"and there are {there}; change it, lower optim.{self._key}, or raise rollouts.per_prompt"
                )
        counts = [budget.rows(rows.length_N[rows_N]) for rows_N, budget in zip(strata, budgets, strict=True)]
        weight_N = rows.weight_N.copy()
        for rows_N, weight in zip(strata, stratum_weights(strata, counts), strict=True):
            weight_N[rows_N] *= weight
        rows = dataclasses.replace(rows, weight_N=weight_N)
        return rows, StratifiedPlan(rows, strata, budgets, self._optim.rows_per_prompt, self._seed, name)

    def _check_enough(self, rows: Rows, use_N: np.ndarray, parts: int) -> None:
        """Check that a step never holds a row twice, and has one for every micro-batch of every process."""
        budget = self._budget
        count = _amount(rows, use_N, budget)
        if budget.by_tokens and count >= budget.amount:
            longest = int(rows.length_N[use_N].max())
            # Every stratum may fall short of its budget by nearly a response.
            strata = 2 if self._share else 1
            if longest * (parts + strata if parts > 1 else 1) > budget.amount:
                raise DataError(
                    f"optim.batch_tokens={budget.amount} cut into {parts} is too few for responses of up to "
                    f"{longest} tokens; raise it"
                )
            return
        if not budget.by_tokens and count >= budget.amount:
            return
        name, fix = "training rollouts", "raise rollouts.per_prompt or data.train_prompts"
        if self._source == "accepted":
            name = f"of {len(rows)} training rollouts that the oracle accepts"
        elif self._source == "references":
            name, fix = "references", "raise data.train_prompts"
        if self._rounds > 1:
            fix = "raise rollouts.per_prompt, which is shared out over the rounds"
        raise DataError(
            f"there are {count} {self._unit}{name}, fewer than optim.{self._key}={budget.amount}; {fix}, or lower "
            f"optim.{self._key}"
        )


def _amount(rows: Rows, use_N: np.ndarray, budget: Budget) -> int:
    """Return how much some rows are in the unit of a budget."""
    return int(rows.length_N[use_N].sum()) if budget.by_tokens else len(use_N)
