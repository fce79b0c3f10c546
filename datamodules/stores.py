"""The rollout stores of a run: which texts it trains on, and which it is measured with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datamodules.tasks import Task
from dinado.models.base_lm import BaseLM
from dinado.rollouts.proposal import Proposal
from dinado.rollouts.spec import StoreSpec
from dinado.rollouts.store import RolloutStore
from experiments.derived import round_sizes

if TYPE_CHECKING:
    from experiments.config import Config


FLATTENED = "T="
"""What the name of a flattened base begins with, where that of a model could stand."""


def uses_rollouts(config: Config) -> bool:
    """Whether training reads rollouts at all; imitating references does not."""
    return not (config.method == "sft" and config.sft_data == "references")


def looks_ahead(config: Config) -> bool:
    """Whether the objective needs to know what likely tokens would lead to."""
    return config.method != "sft" and config.objective.lookahead > 0


def train_store(config: Config, base: BaseLM, task: Task) -> RolloutStore:
    """Rollouts of the training prompts, from the configured proposal: all of them, or those of the first round."""
    rollouts = config.rollouts
    proposal = Proposal(rollouts.temperature, rollouts.top_k, rollouts.top_p)
    beam = rollouts.source == "beam"
    return _store(config, base, task, per_prompt=round_sizes(config)[0], proposal=proposal, beam=beam)


def round_stores(
    config: Config, base: BaseLM, task: Task, index: int, model: str, counts: Sequence[int]
) -> list[RolloutStore]:
    """Rollouts of a later round: from the base, and from the controlled model as it was when the round began.

    Args:
        index: number of the round, at least 1.
        model: fingerprint of that model, or ``T=<temperature>`` for a flattened base in its place.
        counts: rollouts of each prompt.
    """
    drawn_from: dict[str, Any] = {"model": model}
    if model.startswith(FLATTENED):
        drawn_from = {"proposal": Proposal(float(model.removeprefix(FLATTENED)))}
    of_base = [_base_count(count, config.rollouts.base_share) for count in counts]
    of_model = [count - first for count, first in zip(counts, of_base, strict=True)]
    stores = []
    source: dict[str, Any]
    for source, parts in (({}, of_base), (drawn_from, of_model)):
        if not any(parts):
            continue
        even = len(set(parts)) == 1
        part = {"per_prompt": max(parts), "counts": None if even else tuple(parts), **source}
        stores.append(_store(config, base, task, round=index, **part))
    return stores


def _base_count(count: int, share: float) -> int:
    """At least one from either source, unless one of them was ruled out."""
    if share in (0.0, 1.0):
        return int(share * count)
    return min(max(1, round(share * count)), count - 1)


def _store(config: Config, base: BaseLM, task: Task, *, round: int = 0, **part: Any) -> RolloutStore:
    rollouts = config.rollouts
    spec = StoreSpec(
        base=base.fingerprint,
        prompts=tuple(task.train_prompts),
        split="train",
        max_new_tokens=rollouts.max_new_tokens,
        block_size=rollouts.block_size,
        seed=rollouts.seed,
        **part,
    )
    candidates = config.targets.candidates if looks_ahead(config) else 0
    return RolloutStore(
        config.data.cache, spec, task.oracle.fingerprint, rollouts.truncated, round=round, candidates=candidates
    )


def val_store(config: Config, base: BaseLM, task: Task) -> RolloutStore:
    """Rollouts of the held-out prompts, exact draws from the base whatever training uses."""
    rollouts = config.rollouts
    spec = StoreSpec(
        base=base.fingerprint,
        prompts=tuple(task.val_prompts),
        split="val",
        per_prompt=config.eval.rollouts_per_prompt,
        max_new_tokens=rollouts.max_new_tokens,
        block_size=rollouts.block_size,
        seed=rollouts.seed,
    )
    # What was cut off is left out of training, never of a rate of success: the trained model's is counted too.
    truncated = "fail" if rollouts.truncated == "drop" else rollouts.truncated
    return RolloutStore(config.data.cache, spec, task.oracle.fingerprint, truncated)


def stores_of_run(config: Config, base: BaseLM, task: Task) -> list[RolloutStore]:
    """The stores that have to be complete before the run can start."""
    train = [train_store(config, base, task)] if uses_rollouts(config) else []
    return [*train, val_store(config, base, task)]
