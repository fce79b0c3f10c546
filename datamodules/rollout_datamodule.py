"""From finished rollout stores to batches: reads, weighs, serves. Nothing here runs a model.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning import LightningDataModule

from datamodules.batching import EncodedPrompts, collate, held_out_batches
from datamodules.budgets import needed_counts
from datamodules.loaders import HeldOutLoader, TrainLoader
from datamodules.lookahead import with_lookahead
from datamodules.planning import budget_of, plan_of
from datamodules.plans import BatchPlan, StratifiedPlan, micro_batches, split_step
from datamodules.references import rows_of_references
from datamodules.rows import Rows, equal_rows, rows_by_prompt
from datamodules.states import state_store, with_states
from datamodules.stores import (
    FLATTENED,
    looks_ahead,
    round_stores,
    train_store,
    uses_rollouts,
    val_store,
)
from datamodules.tasks import Task
from datamodules.weighing import weighted_rows
from dinado.batch import RolloutBatch
from dinado.errors import CheckpointError, DataError
from dinado.models.base_lm import BaseLM
from dinado.objectives.weights import effective_size
from dinado.rollouts.rounds import read_rounds
from dinado.rollouts.store import RolloutStore
from dinado.rollouts.table import store_summary
from experiments.derived import round_sizes, round_starts

if TYPE_CHECKING:
    from experiments.config import Config


FLATTER, FLATTEST = 0.5, 4.0
"""What is added to the temperature of every round without an accepted rollout, and where that ends."""


class RolloutDataModule(LightningDataModule):
    """Serves :class:`RolloutBatch` objects from the stores of a run, which have to be complete.

    Needs ``Trainer(use_distributed_sampler=False, accumulate_grad_batches=data.accumulation)``.

    Args:
        config: ``optim``, ``rollouts``, ``targets``, ``eval``, ``data`` and the method decide what is served.
        base: encodes prompts; its weights are not used.
        task: prompts and the oracle whose scores are read.

    Attributes:
        rows: training rows, once set up.
        summary: numbers about them under their ``rollouts/`` and ``weights/`` names.
        steps_done: optimiser steps served so far; saved in checkpoints and restored from them.
        stores: where the training rollouts come from, round by round; none when references are imitated.
        models: what the rounds after the first were drawn from, as far as they have come: fingerprints of models, or
            temperatures of a flattened base.
        draw_round: draws the round of that number and adds it (:meth:`add_round`), from the model as it stands or from
            an earlier one given by its fingerprint; called before the step that the round begins with.
    """

    def __init__(self, config: Config, base: BaseLM, task: Task) -> None:
        super().__init__()
        self.config = config
        self.task = task
        self.steps_done = 0
        self.summary: dict[str, float] = {}
        self.stores: list[RolloutStore] = []
        self.models: list[str] = []
        self.draw_round: Callable[[int, str | None], None] | None = None
        self._first = 0  # step that the round began with
        self._plan: BatchPlan | StratifiedPlan | None = None
        self._base = base
        self._train_prompts = EncodedPrompts(base, task.train_prompts)
        self._val_prompts = EncodedPrompts(base, task.val_prompts)

    def setup(self, stage: str | None = None) -> None:
        """Open the stores that this stage reads.

        Raises:
            StoreError: a store is not complete.
            DataError: too few rows to fill an optimiser step.
        """
        config = self.config
        self.val_rows = equal_rows(val_store(config, self._base, self.task).read())
        if stage not in (None, "fit"):
            return
        self.steps_done = 0
        self.models, self._first = [], 0
        self.stores = [train_store(config, self._base, self.task)] if uses_rollouts(config) else []
        self._read()

    def reach(self, step: int) -> None:
        """Draw the rounds that begin before this optimiser step, and more while there is too little to train on."""
        starts = round_starts(self.config)
        while len(self.models) + 1 < len(starts) and (starts[len(self.models) + 1] <= step or self._plan is None):
            self._first = step
            assert self.draw_round is not None, "a run of several rounds needs somebody to draw them"
            self.draw_round(len(self.models) + 1, None)

    def exploration(self) -> str | None:
        """What to draw from while nothing has been accepted: the base, flatter every time; None once something has.

        The model has nothing to go by then, and the base as it is may not say anything acceptable in all its rollouts.
        """
        if (self.rows.score_N > 0).any():
            return None
        return f"{FLATTENED}{min(FLATTER * (1 + len(self.models)) + 1, FLATTEST):g}"

    def next_round(self, model: str) -> list[RolloutStore]:
        """The stores of the next round, still to be filled: as many rollouts for every prompt as it is worth.

        Args:
            model: fingerprint of the controlled model that it is drawn from, or what :meth:`exploration` says.
        """
        index, settings = len(self.models) + 1, self.config.rollouts
        even = round_sizes(self.config)[index]
        counts = [even] * len(self.task.train_prompts)
        if settings.budget == "needed":
            positives = np.zeros(len(counts))
            for rows_K in rows_by_prompt(self.rows.prompt_index_N):
                weight_K = torch.tensor(self._weight_N[rows_K] * self.rows.score_N[rows_K])
                positives[self.rows.prompt_index_N[rows_K[0]]] = effective_size(weight_K)
            counts = needed_counts(positives.tolist(), even, settings.budget_cap)
        return round_stores(self.config, self._base, self.task, index, model, counts)

    def add_round(self, model: str) -> None:
        """Go on with the rollouts of :meth:`next_round` as well; they have to be complete, densities included."""
        self.stores += self.next_round(model)
        self.models.append(model)
        self._read()

    def _read(self) -> None:
        """Rows of all rounds so far, and the plan that serves them from where this round begins.

        There is none while rounds are left and nothing has been accepted, or too little for a step: where all rollouts
        are rejected nothing is known about q*, and a model that learns to avoid what was drawn runs away from the base.
        """
        self.rows, self._plan = self._train_rows(), None
        more = len(self.models) + 1 < self.config.rollouts.rounds
        if more and not (self.rows.score_N > 0).any():
            return
        try:
            parts = self._place()[1] * self.accumulation
            self.rows, self._plan = plan_of(self.rows, self.config, parts, len(self.models))
        except DataError:
            if not more:
                raise

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process in an optimiser step."""
        return micro_batches(self.config.optim, self._place()[1])

    def train_dataloader(self) -> TrainLoader:
        """Micro-batches up to ``optim.steps``."""
        return TrainLoader(self)

    def batches(self, start: int, stop: int, parts: int = 1) -> Iterator[RolloutBatch]:
        """What this process trains on in some optimiser steps, each cut into micro-batches."""
        rank, world_size = self._place()
        if self._plan is None:
            self.reach(start)
        assert self._plan is not None, "the last round makes a plan or raises"
        for step in range(start, stop):
            row_N = self._plan.step(step - self._first)
            weight_total = float(self.rows.weight_N[row_N].sum(dtype=np.float64))
            length_N = self.rows.length_N[row_N] if budget_of(self.config).by_tokens else None
            for row_B in split_step(row_N, rank, world_size, parts, length_N):
                yield self.train_batch(row_B, weight_total)

    def val_dataloader(self) -> HeldOutLoader:
        """Every held-out rollout once."""
        rank, world_size = self._place()
        rows = budget_of(self.config).rows(self.val_rows.length_N) / (world_size * self.accumulation)
        return HeldOutLoader(self, held_out_batches(self.val_rows.prompt_index_N, rank, world_size, int(rows)))

    def state_dict(self) -> dict[str, Any]:
        """How far training has come, and what that position refers to."""
        rounds = {"models": list(self.models), "first": self._first}
        return {"steps_done": self.steps_done, **rounds, **self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the saved optimiser step, in the round that it was in.

        Raises:
            CheckpointError: the batches would not be those that the checkpoint's run would have seen next.
            StoreError: rollouts of an earlier round are gone.
        """
        for index, model in enumerate(state_dict.get("models", []), 1):
            assert self.draw_round is not None, "a run of several rounds needs somebody to draw them"
            self.draw_round(index, model)
        self._first = state_dict.get("first", 0)
        for name, value in self._order().items():
            if state_dict.get(name) != value:
                raise CheckpointError(
                    f"the checkpoint was made with {name}={state_dict.get(name)} and this run has {value}, so it "
                    "cannot go on with the same batches; restore that setting or start a new run"
                )
        self.steps_done = state_dict["steps_done"]

    def train_batch(self, row_B: np.ndarray, weight_total: float) -> RolloutBatch:
        """Some training rows as tensors."""
        return collate(self.rows, row_B, self._train_prompts, self._base.pad_id, weight_total)

    def val_batch(self, row_B: np.ndarray | None) -> RolloutBatch:
        """Some held-out rows as tensors, or a filler."""
        rows = self.val_rows
        if row_B is not None:
            weight_total = float(rows.weight_N[row_B].sum(dtype=np.float64))
            return collate(rows, row_B, self._val_prompts, self._base.pad_id, weight_total)
        filler = collate(rows, [0], self._val_prompts, self._base.pad_id, 0.0)
        filler.weight_B.zero_()
        return filler

    def _train_rows(self) -> Rows:
        config = self.config
        if not uses_rollouts(config):
            return rows_of_references(self.task.train_prompts, self._base)
        drawn = read_rounds(self.stores)
        rows, weights = weighted_rows(drawn, config.targets)
        if not len(rows):
            raise DataError("every rollout was cut off and left out; raise rollouts.max_new_tokens")
        self._weight_N = rows.weight_N.copy()
        self.summary = store_summary(drawn.rollouts) | weights
        if looks_ahead(config):
            rows, found = with_lookahead(rows, drawn.rollouts, config, self._base.eos_ids)
            self.summary |= found
        states = [state_store(config, self._base, store) for store in self.stores]
        return with_states(rows, drawn.rollouts, [kept for kept in states if kept is not None])

    def _order(self) -> dict[str, Any]:
        """Settings that decide which rows the next micro-batch holds."""
        optim = self.config.optim
        return {
            "seed": self.config.seed,
            "optim.batch_size": optim.batch_size,
            "optim.batch_tokens": optim.batch_tokens,
            "optim.rows_per_prompt": optim.rows_per_prompt,
            "micro-batches in a step": self.accumulation,
            "rounds that begin before steps": round_starts(self.config),
            "training rows": len(self.rows),
            "the oracle": self.task.oracle.fingerprint,
            "rollouts.truncated": self.config.rollouts.truncated,
            "rollouts": " ".join(store.spec.fingerprint for store in self.stores),
        }

    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
