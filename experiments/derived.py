"""What follows from settings and is not a setting itself."""

from __future__ import annotations

from experiments.config import Config

EXACT_TASKS = ("exact_world", "exact_gpt2")
NETWORK_METHODS = ("nado", "dinado_hard", "dinado_soft")


def resolved_parameters(config: Config) -> str:
    """What is trained: ``network``, ``lora`` or ``full``.

    The Markov base of the exact world has no weights to adapt, so every method trains a network there; for
    dinado_merge and sft that is a causal network, initialised at zero, added to the base's logits.
    """
    if config.parameters != "auto":
        return config.parameters
    return "network" if config.method in NETWORK_METHODS or config.task.name == "exact_world" else "lora"


def depths_read(config: Config) -> tuple[float, ...]:
    """Depths of the frozen base that training reads at every step, as fractions; empty where it never runs."""
    objective, method = config.objective, config.method
    if method == "sft":
        return ()
    if resolved_parameters(config) == "network":
        return (*config.network.taps, 1.0)
    if method == "dinado_hard":
        return (*objective.norm_taps, 1.0) if config.targets.root == "learned" else ()
    if objective.norm_input == "policy" and objective.norm == "mean":
        return ()
    read_first = config.optim.norm_steps > 0 or objective.norm_input == "base"
    return (*(objective.norm_taps if read_first else ()), 1.0)


def round_sizes(config: Config) -> list[int]:
    """Rollouts of a prompt in each round, on average; the first rounds get what cannot be shared out."""
    each, left_over = divmod(config.rollouts.per_prompt, config.rollouts.rounds)
    return [each + (index < left_over) for index in range(config.rollouts.rounds)]


def round_starts(config: Config) -> list[int]:
    """The optimiser step before which each round is drawn."""
    rollouts = config.rollouts
    return [int(config.optim.steps * rollouts.until * index / rollouts.rounds) for index in range(rollouts.rounds)]
