"""Which runs may stand in one table: those that aim at the same target and are measured the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dinado.errors import ConfigError
from experiments.report.runs import Run

# Whole sections end in a dot. What decides the target q*, the prompts it is measured on, how texts are decoded, and
# how many texts every number is made from.
MUST_AGREE: Mapping[str, tuple[str, ...]] = {
    "the base": (
        "base.name",
        "base.run",
        "base.revision",
        "base.temperature",
        "base.chat_template",
        "base.system_prompt",
    ),
    "the task": ("task.",),
    "the oracle": ("oracle.",),
    "the held-out data": ("data.val_prompts",),
    "decoding": ("alpha", "rollouts.max_new_tokens", "rollouts.truncated"),
    "the evaluation": (
        *("eval.samples_per_prompt", "eval.rollouts_per_prompt", "eval.exact_samples", "eval.text_metrics"),
    ),
}
_ADVICE = {
    "the base": "each base has its own q*; compare the runs of one base",
    "the task": "compare the runs of one task",
    "the oracle": "each oracle has its own q*; compare the runs of one oracle",
    "the held-out data": "name runs with the same held-out prompts",
    "decoding": "name runs that decode alike",
    "the evaluation": "name runs that were measured alike, or run one of them again",
}
# Where a file lies says nothing about what is in it; the held-out prompts themselves are compared.
_PLACES = ("task.path", "task.val_path")


def check(runs: Sequence[Run]) -> None:
    """Refuse runs whose numbers do not mean the same.

    Raises:
        ConfigError: a setting that decides what is measured, or the held-out prompts, differ; the message names one.
    """
    found = [(what, key) for what, keys in MUST_AGREE.items() for key in differing(runs) if key_in(key, keys)]
    found = [(what, key) for what, key in found if key not in _PLACES]
    if found:
        what, key = found[0]
        first, other = runs[0], next(run for run in runs if run.settings[key] != runs[0].settings[key])
        also = f" (and {', '.join(key for _, key in found[1:4])})" if len(found) > 1 else ""
        raise ConfigError(
            f"{what} differs: {key}={first.settings[key]} in {first.path} and {other.settings[key]} in {other.path}"
            f"{also}; {_ADVICE[what]}"
        )
    seen = [run for run in runs if run.per_prompt]
    for run in seen[1:]:
        if run.per_prompt.keys() != seen[0].per_prompt.keys():
            odd = min(run.per_prompt.keys() ^ seen[0].per_prompt.keys())
            raise ConfigError(
                f"the held-out data differs: {seen[0].path} and {run.path} were not evaluated on the same prompts, "
                f"such as {odd[:60]!r}; {_ADVICE['the held-out data']}"
            )


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings that are not the same in all runs, in the order of the schema."""
    return [key for key in runs[0].settings if len({run.settings.get(key) for run in runs}) > 1] if runs else []


def key_in(key: str, keys: Sequence[str]) -> bool:
    """Whether a key is one of ``keys`` or in a section among them, which ends in a dot."""
    return any(key == other or (other.endswith(".") and key.startswith(other)) for other in keys)
