"""Quantities that are derived from the settings.

``config`` is the whole configuration throughout. It has no type here because the metadata of its own settings refer to
these functions.
"""

from __future__ import annotations

from typing import Any

from workbench.settings.methods import METHODS, Method, RowSource
from workbench.settings.parameterisations import PARAMETERISATIONS, NetworkConfig, Parameterisation
from workbench.settings.tasks import TASKS, TaskKind


def method_of(config: Any) -> Method:
    """Return the row of the configured method."""
    return METHODS[config.method]


def task_of(config: Any) -> TaskKind:
    """Return the row of the configured task."""
    return TASKS[config.task.name]


def allowed_parameters(config: Any) -> tuple[str, ...]:
    """List the parameterisations that the configured method can train on the base of the configured task.

    A base without weights to adapt, the Markov base of the exact world, leaves a network for every method: for a method
    that needs a policy it is a causal network, zero at the start, added to the base's logits.
    """
    method = method_of(config)
    if not task_of(config).adaptable:
        return ("network",)
    policies = tuple(row.name for row in PARAMETERISATIONS.values() if row.policy) if method.policy else ()
    return (*(("network",) if method.network else ()), *policies)


def resolved_parameters(config: Any) -> str:
    """Return the name of the parameterisation that is trained, ``auto`` resolved."""
    if config.parameters != "auto":
        return str(config.parameters)
    return method_of(config).default if task_of(config).adaptable else "network"


def parameterisation_of(config: Any) -> Parameterisation:
    """Return the row of the parameterisation that is trained."""
    return PARAMETERISATIONS[resolved_parameters(config)]


def row_source(config: Any) -> RowSource:
    """Return the kind of rows that is trained on."""
    rows = method_of(config).rows
    return "references" if "references" in rows and config.sft_data == "references" else rows[0]


def uses_rollouts(config: Any) -> bool:
    """Tell whether training reads stored rollouts at all; references need none."""
    return row_source(config) != "references"


def looks_ahead(config: Any) -> bool:
    """Tell whether the objective needs the value of likely continuations."""
    return "lookahead" in method_of(config).blocks and config.objective.lookahead.weight > 0


def has_norm_head(config: Any) -> bool:
    """Tell whether a head predicts the norm; a root that is known from the store needs none."""
    head = method_of(config).norm_head
    return head == "steps" or (head == "root" and config.targets.root == "learned")


def needs_root(config: Any) -> bool:
    """Tell whether R along a text follows from a rate R(c) that comes from the stored rollouts of its prompt."""
    return method_of(config).norm_head is not None and config.targets.root == "store"


def norm_reads_base(config: Any) -> bool:
    """Tell whether the norm head reads the states of the frozen base.

    A network's own states depend on the whole text, so beside a network only a root, which depends on the prompt alone,
    is read from the base.
    """
    method = method_of(config)
    if not has_norm_head(config) or method.norm_reads != "base":
        return False
    return method.norm_head == "root" or parameterisation_of(config).policy


def depths_read(config: Any) -> tuple[float, ...]:
    """List the depths of the frozen base that training reads at every step, as fractions; empty if it never runs."""
    objective, row = config.objective, parameterisation_of(config)
    if not method_of(config).predicts_r:
        return ()
    if not row.policy:
        return (*config.own(NetworkConfig).taps, 1.0)
    if not norm_reads_base(config):
        return ()
    if method_of(config).norm_head == "root":
        return (*objective.norm.taps, 1.0)
    if objective.norm.input == "policy" and objective.norm.kind == "mean":
        return ()
    read_first = config.optim.norm_steps > 0 or objective.norm.input == "base"
    return (*(objective.norm.taps if read_first else ()), 1.0)


def round_sizes(config: Any) -> list[int]:
    """Return the mean number of rollouts of a prompt in each round; the first rounds get the remainder."""
    each, left_over = divmod(config.rollouts.per_prompt, config.rollouts.rounds)
    return [each + (index < left_over) for index in range(config.rollouts.rounds)]


def round_starts(config: Any) -> list[int]:
    """Return the optimiser step before which each round is drawn."""
    rollouts = config.rollouts
    return [int(config.optim.steps * rollouts.until * index / rollouts.rounds) for index in range(rollouts.rounds)]
