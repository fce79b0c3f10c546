"""The rollout stores of a run: which texts it trains on, and which it is measured with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamodules.tasks import Task
from dinado.models.base_lm import BaseLM
from dinado.rollouts.proposal import Proposal
from dinado.rollouts.spec import StoreSpec
from dinado.rollouts.store import RolloutStore

if TYPE_CHECKING:
    from experiments.config import Config


def uses_rollouts(config: Config) -> bool:
    """Whether training reads rollouts at all; imitating references does not."""
    return not (config.method == "sft" and config.sft_data == "references")


def looks_ahead(config: Config) -> bool:
    """Whether the objective needs to know what likely tokens would lead to."""
    return config.method != "sft" and config.objective.lookahead > 0


def train_store(config: Config, base: BaseLM, task: Task) -> RolloutStore:
    """Rollouts of the training prompts, from the configured proposal."""
    rollouts = config.rollouts
    proposal = Proposal(rollouts.temperature, rollouts.top_k, rollouts.top_p)
    spec = StoreSpec(
        base=base.fingerprint,
        prompts=tuple(task.train_prompts),
        split="train",
        per_prompt=rollouts.per_prompt,
        max_new_tokens=rollouts.max_new_tokens,
        block_size=rollouts.block_size,
        seed=rollouts.seed,
        proposal=proposal,
    )
    candidates = config.targets.candidates if looks_ahead(config) else 0
    return RolloutStore(config.data.cache, spec, task.oracle.fingerprint, rollouts.truncated, candidates=candidates)


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
