"""Why a setting has no effect: functions of the whole configuration, referred to by the metadata of settings.

Each returns the reason, which completes "ignored, ...", or None where the setting is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from dinado.errors import ConfigError
from workbench.settings.derived import (
    depths_read,
    has_norm_head,
    method_of,
    norm_reads_base,
    parameterisation_of,
    resolved_parameters,
    row_source,
    task_of,
)
from workbench.settings.fields import Unread
from workbench.settings.methods import METHODS

WANDB_MODES = ("off", "disabled", "offline", "online", "shared")
OFF = ("off", "disabled")


def no_block(block: str) -> Unread:
    """Return the condition of a section of ``objective`` that the method does not read."""

    def reason(config: Any) -> str | None:
        if block in method_of(config).blocks:
            return None
        if not method_of(config).predicts_r:
            return f"method={config.method} has a loss of its own"
        return f"it belongs to {_methods(row.name for row in METHODS.values() if block in row.blocks)}"

    return reason


def other_method(name: str) -> Unread:
    """Return the condition of settings that belong to one method alone."""

    def reason(config: Any) -> str | None:
        return None if config.method == name else f"it belongs to method={name}"

    return reason


def no_steps(config: Any) -> str | None:
    """Settings of a step-wise norm."""
    if method_of(config).norm_head == "steps":
        return None
    return f"it belongs to {_methods(row.name for row in METHODS.values() if row.norm_head == 'steps')}"


def no_base_norm(config: Any) -> str | None:
    """Settings of a norm head that reads the frozen base."""
    return None if norm_reads_base(config) else "no norm head reads the base here"


def no_policy_norm(config: Any) -> str | None:
    """The choice between the base's states and the policy's."""
    if (reason := no_base_norm(config)) is not None:
        return reason
    return None if parameterisation_of(config).policy else "there is no policy, only a network"


def bounded(config: Any) -> str | None:
    """The pull on an R above 1, where R cannot get there."""
    method, objective = method_of(config), config.objective
    unbounded = method.telescopes or (
        method.norm_head == "steps" and (objective.norm.kind == "mean" or objective.norm.support)
    )
    return None if unbounded or objective.path.weight else "log R cannot rise above 0 here"


def consistent(config: Any) -> str | None:
    """Forward consistency, where it holds by construction."""
    if not method_of(config).telescopes:
        return None
    return f"{config.method} is forward-consistent by construction"


def no_consistency(config: Any) -> str | None:
    """How forward consistency is measured, where it has no weight."""
    if (reason := consistent(config)) is not None:
        return reason
    return "objective.consistency.weight is 0" if config.objective.consistency.weight == 0 else None


def telescopes(config: Any) -> str | None:
    """The telescoped value as a term besides, where it is the value."""
    return "its values are the telescoped ones already" if method_of(config).telescopes else None


def no_path(config: Any) -> str | None:
    """The loss of the telescoped value."""
    if method_of(config).telescopes or config.objective.path.weight:
        return None
    names = _methods(row.name for row in METHODS.values() if row.telescopes)
    return f"it belongs to {names}, and to objective.path.weight above 0"


def no_lookahead(config: Any) -> str | None:
    """Settings of the lookahead target."""
    return "objective.lookahead.weight is 0" if config.objective.lookahead.weight == 0 else None


def one_source(config: Any) -> str | None:
    """The choice of what is trained on, for a method that has none."""
    if len(method_of(config).rows) > 1:
        return None
    names = _methods(row.name for row in METHODS.values() if len(row.rows) > 1)
    return f"it belongs to method={names}"


def untrained(name: str) -> Unread:
    """Return the condition of the settings of a parameterisation that is not trained."""

    def reason(config: Any) -> str | None:
        trained = resolved_parameters(config)
        return None if trained == name else f"{trained} is trained, not {name} (parameters={trained})"

    return reason


def no_policy(config: Any) -> str | None:
    """Settings that belong to a policy."""
    return None if parameterisation_of(config).policy else "it belongs to policies, a network is small"


def base_never_runs(config: Any) -> str | None:
    """Where the states of the frozen base are kept."""
    return None if depths_read(config) else "training never runs the frozen base here"


def no_root(config: Any) -> str | None:
    """Where the success rate of a prompt comes from."""
    method = method_of(config)
    tied = method.norm_head is not None or (method.predicts_r and config.objective.path.weight)
    return None if tied else f"{config.method} has no norm to tie to it"


def accepted_only(config: Any) -> str | None:
    """A share of accepted rollouts in each step."""
    if row_source(config) == "rollouts":
        return None
    return f"method={config.method} sees accepted rollouts only"


def no_norm_steps(config: Any) -> str | None:
    """Steps in which the norm head alone is trained."""
    method = method_of(config)
    if method.norm_head == "steps" and (method.norm_reads == "own" or norm_reads_base(config)):
        return None
    return "it belongs to dinado_soft, and to dinado_merge where it adapts the base"


def no_norm_head(config: Any) -> str | None:
    """Settings of the norm head's training."""
    return None if has_norm_head(config) else "there is no norm head"


def uniform(what: str) -> Unread:
    """Return the condition of settings that change weights."""

    def reason(config: Any) -> str | None:
        return f"targets.weights=uniform has nothing to {what}" if config.targets.weights == "uniform" else None

    return reason


def one_round(config: Any) -> str | None:
    """Settings of later rounds."""
    return "rollouts.rounds=1 has no later round" if config.rollouts.rounds == 1 else None


def even_budget(config: Any) -> str | None:
    """The cap on an uneven budget."""
    if (reason := one_round(config)) is not None:
        return reason
    return "it belongs to rollouts.budget=needed" if config.rollouts.budget == "even" else None


def own_base(config: Any) -> str | None:
    """Which base, where the task brings its own."""
    return f"task.name={config.task.name} brings its own base" if task_of(config).exact else None


def base_of_run(config: Any) -> str | None:
    """How a base is read, where it is an earlier run's."""
    if (reason := own_base(config)) is not None:
        return reason
    return "base.run brings its own" if config.base.run is not None else None


def temperature_of_run(config: Any) -> str | None:
    """A temperature of 1, which an earlier run's replaces."""
    if task_of(config).exact or config.base.run is None or config.base.temperature != 1.0:
        return None
    return "at 1 the temperature of base.run stays; any other value replaces it"


def wandb_off(config: Any) -> str | None:
    """Settings of Weights & Biases.

    WANDB_MODE is how whoever starts many runs turns W&B on or off for all of them as they are, so it excuses them.
    """
    if "WANDB_MODE" in os.environ or wandb_mode(config) not in OFF:
        return None
    return "W&B is off; set logging.wandb=offline (or online)"


def wandb_mode(config: Any) -> str:
    """Return the mode of W&B.

    WANDB_MODE in the environment wins over ``logging.wandb``. A W&B agent, which says so by WANDB_SWEEP_ID, waits for
    the numbers of the run that it starts, so for it `off` means online.

    Raises:
        ConfigError: W&B knows no such mode.
    """
    by_agent = bool(os.environ.get("WANDB_SWEEP_ID")) and config.logging.wandb == "off"
    mode = os.environ.get("WANDB_MODE", "online" if by_agent else config.logging.wandb)
    if mode not in WANDB_MODES:
        raise ConfigError(f"WANDB_MODE={mode}: choose one of {', '.join(WANDB_MODES)}")
    return str(mode)


def _methods(names: Iterable[str]) -> str:
    return ", ".join(names)
