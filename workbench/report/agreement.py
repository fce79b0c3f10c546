"""The check that runs can be compared: they need the same target and the same measurement."""

from __future__ import annotations

from collections.abc import Sequence

from dinado.errors import ConfigError
from workbench.report.run_reader import Run
from workbench.settings import schema

# Advice for each value of About.agree, which names what the runs of one comparison must have in common.
_ADVICE = {
    "the base": "each base has its own q*; compare the runs of one base",
    "the task": "compare the runs of one task",
    "the oracle": "each oracle has its own q*; compare the runs of one oracle",
    "the held-out data": "name runs with the same held-out prompts",
    "decoding": "name runs that decode alike",
    "the evaluation": "name runs that were measured alike, or run one of them again",
}


UNBIASED, BIASED, EXACT = "val/kl_prompts_unresolved", "val/kl_prompts_left_out", "val/kl_to_optimum_se"
"""Numbers that tell how a run has estimated its KL to the optimum."""


def check(runs: Sequence[Run]) -> None:
    """Refuse runs whose numbers are not comparable.

    Raises:
        ConfigError: a setting that decides the target or its measurement differs, or the held-out prompts do; the
            message names one difference.
    """
    leaves = schema.leaves()
    found = [(leaves[key].agree, key) for key in differing(runs) if key in leaves and leaves[key].agree]
    if found := sorted(found, key=lambda pair: list(_ADVICE).index(pair[0])):
        what, key = found[0]
        first, other = runs[0], next(run for run in runs if run.settings[key] != runs[0].settings[key])
        also = f" (and {', '.join(key for _, key in found[1:4])})" if len(found) > 1 else ""
        raise ConfigError(
            f"{what} differs: {key}={first.settings[key]} in {first.path} and {other.settings[key]} in {other.path}"
            f"{also}; {_ADVICE[what]}"
        )
    _same_estimator(runs)
    seen = [run for run in runs if run.per_prompt]
    for run in seen[1:]:
        if run.per_prompt.keys() != seen[0].per_prompt.keys():
            odd = min(run.per_prompt.keys() ^ seen[0].per_prompt.keys())
            raise ConfigError(
                f"the held-out data differs: {seen[0].path} and {run.path} were not evaluated on the same prompts, "
                f"such as {odd[:60]!r}; {_ADVICE['the held-out data']}"
            )


def _same_estimator(runs: Sequence[Run]) -> None:
    """Refuse runs whose KL to the optimum was estimated in different ways: by an earlier version it was biased."""
    now = [run for run in runs if UNBIASED in run.final]
    before = [run for run in runs if BIASED in run.final and UNBIASED not in run.final and EXACT not in run.final]
    if now and before:
        raise ConfigError(
            f"the evaluation differs: {before[0].path} was made by an earlier version, whose KL(q*||q) is biased, and "
            f"{now[0].path} by this one; {_ADVICE['the evaluation']}"
        )


def differing(runs: Sequence[Run]) -> list[str]:
    """List the settings that are not the same in all runs, in the order of the schema."""
    return [key for key in runs[0].settings if len({run.settings.get(key) for run in runs}) > 1] if runs else []
