"""The rollout stores of a run: those that it trains on, and the one that it is evaluated with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from datamodules.engine_choice import EngineChoice
from datamodules.tasks.task import Task
from dinado.bases.causal import BaseLM
from dinado.bases.prompt_checks import encoded_digest
from dinado.rollouts.proposal import Proposal
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.store_spec import StoreSpec
from workbench.settings.config import Config
from workbench.settings.derived import looks_ahead, round_sizes, uses_rollouts

LEAST_BLOCKS = 4
"""Blocks that a round is divided into at least, if its prompts suffice."""
FLATTENED = "T="
"""Prefix of the name of a flattened base, which takes the place of a model's fingerprint."""


class RunStores:
    """The stores of a run by purpose; opening one reads nothing.

    Args:
        config: how rollouts are sampled, how many are held out, where stores are kept.
        base: the model that they are sampled from.
        task: prompts and oracle.
    """

    def __init__(self, config: Config, base: BaseLM, task: Task) -> None:
        self._base = base
        self._task = task
        self._rollouts = config.rollouts
        self._held_out = config.eval.rollouts_per_prompt
        self._cache = config.data.cache
        self._first_round = round_sizes(config)[0]
        self._candidates = config.objective.lookahead.candidates if looks_ahead(config) else 0
        self._trains_on_rollouts = uses_rollouts(config)
        self._engine = EngineChoice(config) if config.rollouts.engine != "local" else None

    def needed(self) -> list[RolloutStore]:
        """List the stores that have to be complete before the run can start."""
        return [*self.first(), self.held_out()]

    def first(self) -> list[RolloutStore]:
        """List the stores that training begins with; empty where it reads references."""
        return [self.train()] if self._trains_on_rollouts else []

    def train(self) -> RolloutStore:
        """Return the store of the training rollouts from the configured proposal, or of the first round's."""
        settings = self._rollouts
        proposal = Proposal(settings.temperature, settings.top_k, settings.top_p)
        part: dict[str, Any] = {"per_prompt": self._first_round, "proposal": proposal}
        if self._engine is None:
            return self._train(**part, beam=settings.source == "beam")
        if (known := self._engine.last_seen()) is not None and (
            store := self._train(**part, engine=known)
        ).is_complete():
            return store
        return self._train(**part, engine=self._engine.ask())

    def later(self, index: int, model: str, counts: Sequence[int]) -> list[RolloutStore]:
        """Return the stores of a later round: one sampled from the base, one from the model as the round began.

        Args:
            index: number of the round, at least 1.
            model: fingerprint of that model, or ``T=<temperature>`` for a flattened base in its place.
            counts: rollouts of each prompt.
        """
        drawn_from: dict[str, Any] = {"model": model}
        if model.startswith(FLATTENED):
            drawn_from = {"proposal": Proposal(float(model.removeprefix(FLATTENED)))}
        of_base = [_base_count(count, self._rollouts.base_share) for count in counts]
        of_model = [count - first for count, first in zip(counts, of_base, strict=True)]
        stores = []
        source: dict[str, Any]
        for source, parts in (({}, of_base), (drawn_from, of_model)):
            if not any(parts):
                continue
            even = len(set(parts)) == 1
            part = {"per_prompt": max(parts), "counts": None if even else tuple(parts), **source}
            stores.append(self._train(round=index, **part))
        return stores

    def held_out(self, first: int = 0, more: int = 0, places: Sequence[int] | None = None) -> RolloutStore:
        """Return the store of the held-out rollouts: exact samples of the base, whatever training uses.

        Args:
            first, more: rollouts that earlier stores hold of each prompt, and those that follow them; 0 for the first
                ``eval.rollouts_per_prompt``.
            places: positions of the prompts that these are drawn for; None for all.
        """
        part: dict[str, Any] = {"first": first, "per_prompt": more or self._held_out}
        if places is not None:
            # As many rollouts at once as of the first ones, so that the base is not run for a few.
            prompts = max(1, self._rollouts.block_size * self._held_out // max(1, more))
            part |= {"places": tuple(places), "block_size": prompts}
        spec = self._spec("val", **part)
        # Truncated rollouts may be dropped from training, but not from a success rate: the trained model's count too.
        truncated = "fail" if self._rollouts.truncated == "drop" else self._rollouts.truncated
        return RolloutStore(self._cache, spec, self._task.oracle.fingerprint, truncated)

    def _train(self, *, round: int = 0, **part: Any) -> RolloutStore:
        each = part["per_prompt"] if part.get("counts") is None else np.mean(part["counts"])
        return RolloutStore(
            self._cache,
            self._spec("train", **part, block_size=self._prompts_in_block(each)),
            self._task.oracle.fingerprint,
            self._rollouts.truncated,
            round=round,
            candidates=self._candidates,
        )

    def _prompts_in_block(self, rollouts_each: float) -> int:
        """Return how many prompts are sampled together where each gets fewer rollouts than in one shot.

        A round's blocks then hold as many rollouts as those of a run without rounds, and the base is not run for a few;
        there are still enough blocks for some processes to share.
        """
        settings = self._rollouts
        prompts = int(settings.block_size * settings.per_prompt / max(1.0, rollouts_each))
        shared = -(-len(self._task.train_prompts) // LEAST_BLOCKS)
        return max(settings.block_size, min(prompts, shared))

    def _spec(self, split: str, **part: Any) -> StoreSpec:
        prompts = self._task.train_prompts if split == "train" else self._task.val_prompts
        if (places := part.get("places")) is not None:
            prompts = [prompts[place] for place in places]
        return StoreSpec(
            base=self._base.fingerprint,
            encoded=encoded_digest(self._base, prompts),
            prompts=tuple(prompts),
            split=split,
            max_new_tokens=self._rollouts.max_new_tokens,
            seed=self._rollouts.seed,
            **{"block_size": self._rollouts.block_size, **part},
        )


def _base_count(count: int, share: float) -> int:
    """Return the number of rollouts from the base: at least one from either source, unless the share excludes it."""
    if share in (0.0, 1.0):
        return int(share * count)
    return min(max(1, round(share * count)), count - 1)
