"""Conditions under which a setting has no effect: functions of the whole configuration, used by settings' metadata.

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
    """Tell why settings of a step-wise norm have no effect."""
    if method_of(config).norm_head == "steps":
        return None
    return f"it belongs to {_methods(row.name for row in METHODS.values() if row.norm_head == 'steps')}"


def no_base_norm(config: Any) -> str | None:
    """Tell why settings of a norm head that reads the frozen base have no effect."""
    return None if norm_reads_base(config) else "no norm head reads the base here"


def no_policy_norm(config: Any) -> str | None:
    """Tell why the choice between the base's states and the policy's has no effect."""
    if (reason := no_base_norm(config)) is not None:
        return reason
    return None if parameterisation_of(config).policy else "there is no policy, only a network"


def bounded(config: Any) -> str | None:
    """Tell why the penalty on an R above 1 has no effect."""
    method, objective = method_of(config), config.objective
    unbounded = method.telescopes or (
        method.norm_head == "steps" and (objective.norm.kind == "mean" or objective.norm.support)
    )
    return None if unbounded or objective.path.weight else "log R cannot rise above 0 here"


def consistent(config: Any) -> str | None:
    """Tell why the weight of forward consistency has no effect: it may hold by construction."""
    if not method_of(config).telescopes:
        return None
    return f"{config.method} is forward-consistent by construction"


def no_consistency(config: Any) -> str | None:
    """Tell why the measure of forward consistency has no effect."""
    if (reason := consistent(config)) is not None:
        return reason
    return "objective.consistency.weight is 0" if config.objective.consistency.weight == 0 else None


def no_prompt_value(config: Any) -> str | None:
    """Tell why tying V_0 to the prompt's last token has no effect: only a whole R has a value there."""
    if (reason := no_consistency(config)) is not None:
        return reason
    return None if method_of(config).scores_prompt else "only NADO's network gives a value to a token of the prompt"


def telescopes(config: Any) -> str | None:
    """Tell why a separate term on the telescoped value has no effect."""
    return "its values are the telescoped ones already" if method_of(config).telescopes else None


def no_path(config: Any) -> str | None:
    """Tell why the loss of the telescoped value has no effect."""
    if method_of(config).telescopes or config.objective.path.weight:
        return None
    names = _methods(row.name for row in METHODS.values() if row.telescopes)
    return f"it belongs to {names}, and to objective.path.weight above 0"


def no_lookahead(config: Any) -> str | None:
    """Tell why settings of the lookahead target have no effect."""
    return "objective.lookahead.weight is 0" if config.objective.lookahead.weight == 0 else None


def one_source(config: Any) -> str | None:
    """Tell why the choice of the training rows has no effect."""
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
    """Tell why settings of a policy have no effect."""
    return None if parameterisation_of(config).policy else "it belongs to policies, a network is small"


def base_never_runs(config: Any) -> str | None:
    """Tell why storing the states of the frozen base has no effect."""
    return None if depths_read(config) else "training never runs the frozen base here"


def no_root(config: Any) -> str | None:
    """Tell why the source of a prompt's success rate has no effect."""
    method = method_of(config)
    tied = method.norm_head is not None or (method.predicts_r and config.objective.path.weight)
    return None if tied else f"{config.method} has no norm to tie to it"


def accepted_only(config: Any) -> str | None:
    """Tell why the share of accepted rollouts in each step has no effect."""
    if row_source(config) == "rollouts":
        return None
    return f"method={config.method} sees accepted rollouts only"


def no_norm_steps(config: Any) -> str | None:
    """Tell why steps that train the norm head alone have no effect."""
    method = method_of(config)
    if method.norm_head == "steps" and (method.norm_reads == "own" or norm_reads_base(config)):
        return None
    names = _methods(row.name for row in METHODS.values() if row.norm_head == "steps")
    return f"it belongs to {names}, where the norm head reads the base or the network"


def no_norm_head(config: Any) -> str | None:
    """Tell why settings of the norm head's training have no effect."""
    return None if has_norm_head(config) else "there is no norm head"


def uniform(what: str) -> Unread:
    """Return the condition of settings that change weights."""

    def reason(config: Any) -> str | None:
        return f"targets.weights=uniform has nothing to {what}" if config.targets.weights == "uniform" else None

    return reason


def one_round(config: Any) -> str | None:
    """Tell why settings of later rounds have no effect."""
    return "rollouts.rounds=1 has no later round" if config.rollouts.rounds == 1 else None


def local_rollouts(config: Any) -> str | None:
    """Tell why settings of an inference server have no effect."""
    return "it belongs to rollouts.engine=openai" if config.rollouts.engine == "local" else None


def even_budget(config: Any) -> str | None:
    """Tell why the cap on an uneven budget has no effect."""
    if (reason := one_round(config)) is not None:
        return reason
    return "it belongs to rollouts.budget=needed" if config.rollouts.budget == "even" else None


def own_base(config: Any) -> str | None:
    """Tell why the choice of a base has no effect."""
    return f"task.name={config.task.name} brings its own base" if task_of(config).exact else None


def base_of_run(config: Any) -> str | None:
    """Tell why settings of the loading of a base have no effect."""
    if (reason := own_base(config)) is not None:
        return reason
    return "base.run brings its own" if config.base.run is not None else None


def temperature_of_run(config: Any) -> str | None:
    """Tell why a temperature of 1 has no effect: that of an earlier run replaces it."""
    if task_of(config).exact or config.base.run is None or config.base.temperature != 1.0:
        return None
    return "at 1 the temperature of base.run stays; any other value replaces it"


def wandb_off(config: Any) -> str | None:
    """Tell why settings of Weights & Biases have no effect.

    WANDB_MODE, which turns W&B on or off for many runs at once, is no reason to refuse the settings of each run.
    """
    if "WANDB_MODE" in os.environ or wandb_mode(config) not in OFF:
        return None
    return "W&B is off; set logging.wandb=offline (or online)"


def wandb_mode(config: Any) -> str:
    """Return the mode of W&B.

    WANDB_MODE in the environment overrides ``logging.wandb``. A W&B agent, which sets WANDB_SWEEP_ID, waits for the
    numbers of its run, so under an agent `off` means online.

    Raises:
        ConfigError: W&B has no such mode.
    """
    by_agent = bool(os.environ.get("WANDB_SWEEP_ID")) and config.logging.wandb == "off"
    mode = os.environ.get("WANDB_MODE", "online" if by_agent else config.logging.wandb)
    if mode not in WANDB_MODES:
        raise ConfigError(f"WANDB_MODE={mode}: choose one of {', '.join(WANDB_MODES)}")
    return str(mode)


def _methods(names: Iterable[str]) -> str:
    return ", ".join(names)
