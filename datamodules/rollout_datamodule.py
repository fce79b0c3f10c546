"""The data module, which reads complete rollout stores, weights their rows and serves batches. It runs no model.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule

from datamodules.batch_plan import BatchPlan, StratifiedPlan, micro_batches, split_step
from datamodules.choose_plan import PlanChoice, budget_of
from datamodules.collation import EncodedPrompts, collate, held_out_batches
from datamodules.held_out import HeldOut
from datamodules.loaders import HeldOutLoader, TrainLoader
from datamodules.lookahead_targets import with_lookahead
from datamodules.reference_rows import rows_of_references
from datamodules.round_budgets import needed_counts
from datamodules.run_stores import FLATTENED, RunStores
from datamodules.state_choice import StateChoice, with_states
from datamodules.tasks import Task
from datamodules.training_rows import Rows, rows_by_prompt
from datamodules.weighing import weighted_rows
from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.errors import CheckpointError, DataError
from dinado.objectives.weights import effective_size
from dinado.rollouts.drawn import read_rounds
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.rollout_table import store_summary
from dinado.rollouts.served_texts import differences
from workbench.settings.config import Config
from workbench.settings.derived import looks_ahead, round_sizes, round_starts, row_source

FLATTER, FLATTEST = 0.5, 4.0
"""Increase of the temperature with every round without an accepted rollout, and its upper limit."""


class RolloutDataModule(LightningDataModule):
    """A source of :class:`RolloutBatch` objects from the stores of a run, which have to be complete.

    It needs ``Trainer(use_distributed_sampler=False, accumulate_grad_batches=data.accumulation)``.

    Args:
        config: ``optim``, ``rollouts``, ``targets``, ``eval``, ``data`` and the method decide what is served.
        base: encodes prompts; its weights are not used.
        task: the prompts, and the oracle whose scores are read.

    Attributes:
        rows: training rows, after :meth:`setup`.
        summary: metrics of these rows under their ``rollouts/`` and ``weights/`` names.
        steps_done: optimiser steps served so far; saved in checkpoints and restored from them.
        stores: the stores of the training rollouts, round by round; empty when references are imitated.
        models: sources of the rounds added so far, without the first: fingerprints of models, or temperatures of a
            flattened base.
        restored_models: sources of a resumed run's rounds, which have to be added again before training.
    """

    def __init__(self, config: Config, base: BaseLM, task: Task) -> None:
        super().__init__()
        self.config = config
        self.task = task
        self.steps_done = 0
        self.summary: dict[str, float] = {}
        self.stores: list[RolloutStore] = []
        self.models: list[str] = []
        self.restored_models: list[str] = []
        self._restored: dict[str, Any] | None = None
        self._run_stores = RunStores(config, base, task)
        self._held_out = HeldOut(config, base, task)
        self._states = StateChoice(config, base)
        self._plans = PlanChoice(config)
        self._first_rows: Rows | None = None
        self._first = 0  # first optimiser step of the current round
        self._plan: BatchPlan | StratifiedPlan | None = None
        self._success = 1.0  # mean score of the rows
        self._base = base
        self._train_prompts = EncodedPrompts(base, task.train_prompts)
        self._val_prompts = EncodedPrompts(base, task.val_prompts)

    def setup(self, stage: str | None = None) -> None:
        """Open the stores that this stage reads.

        Raises:
            StoreError: a store is incomplete.
            DataError: there are too few rows to fill an optimiser step.
        """
        self.held_out = self._held_out.read()
        self.val_rows = self.held_out.rows()
        if stage not in (None, "fit"):
            return
        self.steps_done = 0
        self.models, self._first = [], 0
        self.stores = self._run_stores.first()
        # Lightning sets up what the session has set up already, now with the number of processes.
        first_rows, self._first_rows = self._first_rows if self.trainer else None, None
        self._read(first_rows)
        if not self.trainer:
            self._first_rows = self._read_rows

    @property
    def num_steps(self) -> int:
        """Total number of optimiser steps."""
        return self.config.optim.steps

    def begins_round(self, step: int) -> bool:
        """Tell whether a round has to be sampled before this optimiser step, and if so record the step as its first.

        A round is due at its scheduled step, and earlier while there are too few rows to train on.
        """
        starts, index = round_starts(self.config), len(self.models) + 1
        due = index < len(starts) and (starts[index] <= step or self._plan is None)
        if due:
            self._first = step
        return due

    def exploration(self) -> str | None:
        """Return the flattened base to sample from while no rollout is accepted; None once one is.

        The temperature rises with every round. Without accepted rollouts the model has nothing to learn from, and the
        base at its own temperature may not produce an acceptable text in all its rollouts.
        """
        if (self.rows.score_N > 0).any():
            return None
        return f"{FLATTENED}{min(FLATTER * (1 + len(self.models)) + 1, FLATTEST):g}"

    def next_round(self, model: str) -> list[RolloutStore]:
        """Return the stores of the next round, still to be filled; ``rollouts.budget`` sets each prompt's share.

        Args:
            model: fingerprint of the controlled model to sample from, or the result of :meth:`exploration`.
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
        return self._run_stores.later(index, model, counts)

    def add_round(self, model: str) -> None:
        """Add the stores of :meth:`next_round` to the training data; they have to be complete, densities included."""
        self.stores += self.next_round(model)
        self.models.append(model)
        self._read()

    def _read(self, rows: Rows | None = None) -> None:
        """Build the plan that serves the rows of all rounds so far from the first step of this round.

        There is no plan while rounds remain and either no rollout is accepted or there are too few rows for a step:
        rejected rollouts alone say nothing about q*, and a model that learns to avoid them drifts away from the base.

        Args:
            rows: what has been read already; None reads the stores.
        """
        self._read_rows = self.rows = self._train_rows() if rows is None else rows
        self._plan = None
        self._success = float(np.average(self.rows.score_N, weights=self.rows.weight_N)) or 1.0
        more = len(self.models) + 1 < self.config.rollouts.rounds
        if more and not (self.rows.score_N > 0).any():
            return
        try:
            parts = self._place()[1] * self.accumulation
            self.rows, self._plan = self._plans.of(self.rows, parts, len(self.models))
        except DataError:
            if not more:
                raise

    @property
    def held_out_folders(self) -> list[Path]:
        """The folders of the held-out rollouts."""
        return [store.folder for store in self._held_out.stores()]

    @property
    def accumulation(self) -> int:
        """Number of micro-batches of one process in an optimiser step."""
        return micro_batches(self.config.optim, self._place()[1])

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of the micro-batches up to ``optim.steps``."""
        return TrainLoader(self)

    def batches(self, start: int, stop: int, parts: int = 1) -> Iterator[RolloutBatch]:
        """Yield the micro-batches of this process in the optimiser steps from ``start`` to before ``stop``."""
        rank, world_size = self._place()
        assert self._plan is not None, "engine/rounds.py draws until there is enough to train on, or raises"
        for step in range(start, stop):
            row_N = self._plan.step(step - self._first)
            weight_total = float(self.rows.weight_N[row_N].sum(dtype=np.float64))
            length_N = self.rows.length_N[row_N] if budget_of(self.config.optim).by_tokens else None
            for row_B in split_step(row_N, rank, world_size, parts, length_N):
                yield self.train_batch(row_B, weight_total)

    def val_dataloader(self) -> HeldOutLoader:
        """Return the loader of every held-out rollout, once."""
        rank, world_size = self._place()
        rows = budget_of(self.config.optim).rows(self.val_rows.length_N) / (world_size * self.accumulation)
        return HeldOutLoader(self, held_out_batches(self.val_rows.prompt_index_N, rank, world_size, int(rows)))

    def state_dict(self) -> dict[str, Any]:
        """Return the position in training, and the settings that it depends on."""
        rounds = {"models": list(self.models), "first": self._first}
        return {"steps_done": self.steps_done, **rounds, **self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the saved optimiser step, in its round.

        Raises:
            CheckpointError: the batches would differ from those that the checkpoint's run would have seen next.
            StoreError: rollouts of an earlier round are missing.
        """
        self.restored_models = list(state_dict.get("models", []))
        self._first = state_dict.get("first", 0)
        self.steps_done = state_dict["steps_done"]
        self._restored = state_dict
        if not self.restored_models:
            self.check_restored()

    def check_restored(self) -> None:
        """Compare the settings that decide the order of batches with the checkpoint's, once its rounds are added.

        Raises:
            CheckpointError: the batches would differ from those that the checkpoint's run would have seen next.
        """
        saved, self._restored, self.restored_models = self._restored, None, []
        for name, value in self._order().items() if saved is not None else ():
            if saved is not None and saved.get(name) != value:
                raise CheckpointError(
                    f"the checkpoint was made with {name}={saved.get(name)} and this run has {value}, so it "
                    "cannot go on with the same batches; restore that setting or start a new run"
                )

    def train_batch(self, row_B: np.ndarray, weight_total: float) -> RolloutBatch:
        """Collate training rows into a batch."""
        return collate(self.rows, row_B, self._train_prompts, self._base.pad_id, weight_total, self._success)

    def val_batch(self, row_B: np.ndarray | None) -> RolloutBatch:
        """Collate held-out rows into a batch; None gives a filler of weight 0."""
        rows = self.val_rows
        if row_B is not None:
            weight_total = float(rows.weight_N[row_B].sum(dtype=np.float64))
            return collate(rows, row_B, self._val_prompts, self._base.pad_id, weight_total)
        filler = collate(rows, [0], self._val_prompts, self._base.pad_id, 0.0)
        filler.weight_B.zero_()
        return filler

    def _train_rows(self) -> Rows:
        config = self.config
        if row_source(config) == "references":
            return rows_of_references(self.task.train_prompts, self._base)
        drawn = read_rounds(self.stores)
        rows, weights = weighted_rows(drawn, config.targets)
        if not len(rows):
            raise DataError("every rollout was cut off and left out; raise rollouts.max_new_tokens")
        self._weight_N = rows.weight_N.copy()
        apart = differences([block for store in self.stores for block in store.drawn_by()])
        self.summary = store_summary(drawn.rollouts) | weights | apart
        if looks_ahead(config):
            rows, found = with_lookahead(
                rows,
                drawn.rollouts,
                config.objective.lookahead,
                self._base.eos_ids,
                budget=config.rollouts.max_new_tokens,
                judge_truncated=config.rollouts.truncated == "score",
                seed=config.seed,
            )
            self.summary |= found
        states = [self._states.of(store) for store in self.stores]
        return with_states(rows, drawn.rollouts, [kept for kept in states if kept is not None])

    def _order(self) -> dict[str, Any]:
        """Return the settings that decide which rows the next micro-batch holds."""
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
        """Return the rank and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
