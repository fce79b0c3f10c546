"""The twist that a trained run gives to sequential Monte Carlo: its own values, or a critic from its rollouts.

Axes: B unfinished texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from datamodules.run_stores import RunStores
from datamodules.tasks import Task
from datamodules.weighing import weighted_rows
from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.control.prefix_critic import PrefixCritic
from dinado.decoding.twists import LEAST, CriticTwist, Twist
from dinado.errors import ConfigError
from dinado.prompt import Prompt
from dinado.rollouts.drawn import read_rounds
from dinado.rollouts.rollout_store import RolloutStore
from lightning_modules.rollout_method import RolloutMethod
from lightning_modules.value_method import ValueMethod
from workbench.settings.config import Config
from workbench.settings.derived import looks_ahead


class ValueTwist:
    """The run's own R(c, y_<=t), the value after the last token of a text.

    Args:
        method: predicts R.
        success: mean success rate of the training rollouts, for methods that are told R(c): a new prompt's is unknown.
    """

    def __init__(self, method: RolloutMethod, success: float) -> None:
        self._method, self._success = method, success

    def __call__(self, batch: RolloutBatch, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Return log R(c, y_<=t), ``[B]``."""
        batch.root_B = torch.full_like(batch.root_B, self._success)
        log_r_BT = self._method.terms(batch).log_r_BT
        assert log_r_BT is not None, "the method predicts R"
        last_B1 = batch.response_mask_BT.sum(1, keepdim=True) - 1
        return log_r_BT.gather(1, last_B1)[:, 0].double().clamp(LEAST, 0.0).cpu().numpy()


def rollouts_for_twist(config: Config, base: BaseLM, task: Task) -> list[RolloutStore]:
    """Return the stores of the rollouts that a run's twist is made of.

    Raises:
        ConfigError: they are not in the cache.
    """
    stores = RunStores(config, base, task).first()
    if not stores or not all(store.is_complete() for store in stores):
        raise ConfigError(
            f"--decoder smc reads the rollouts that the run was trained on, and data.cache={config.data.cache} does "
            "not hold them; name the run's cache, or take --decoder sir"
        )
    return stores


def twist_of(method: RolloutMethod, task: Task) -> Twist:
    """Return the twist of a run: its values, or, where they are no news (Hard, SFT), a critic from its first rollouts.

    Raises:
        ConfigError: the run's training rollouts, which this needs, are not in the cache.
    """
    config, base = method.config, method.base
    stores = rollouts_for_twist(config, base, task)
    drawn = read_rounds(stores)
    rows, _ = weighted_rows(drawn, config.targets)
    if isinstance(method, ValueMethod) and not method.telescopes:
        return ValueTwist(method, float(np.average(rows.score_N, weights=rows.weight_N).clip(1e-3, 1 - 1e-3)))
    rollouts = drawn.rollouts
    tokens = [rollouts.response(row)[0] for row in range(len(rows))]
    if looks_ahead(config):
        progress = [rollouts.lookahead(row).progress_T for row in range(len(rows))]
    else:
        asked = [rollouts.prompts[place] for place in rollouts.prompt_index_N.tolist()]
        progress = [_progress(method, task, prompt, row_T) for prompt, row_T in zip(asked, tokens, strict=True)]
    critic = PrefixCritic(
        progress,
        tokens,
        rows.score_N,
        rows.weight_N,
        rows.prompt_index_N,
        eos_ids=base.eos_ids,
        max_new_tokens=config.rollouts.max_new_tokens,
        seed=config.seed,
    )
    return CriticTwist(critic, task.oracle, base)


def _progress(method: RolloutMethod, task: Task, prompt: Prompt, tokens_T: np.ndarray) -> np.ndarray:
    """Return the oracle's progress before each token."""
    prefixes = [method.base.decode(tokens_T[:used].tolist()) for used in range(len(tokens_T))]
    return task.oracle.checked_progress([prompt] * len(prefixes), prefixes).numpy()
