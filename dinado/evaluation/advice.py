"""Settings that suit an oracle, from a few texts of the base."""

from __future__ import annotations

import math
from typing import NamedTuple

WANTED = 200
"""Accepted rollouts that training should have, as a rule of thumb."""
MOST_PER_PROMPT = 64
RARE = 0.03
"""Success rate below which rollouts in rounds are cheaper than rollouts of the base."""
COMMON = 0.9
CUT_OFF = 0.2
"""Share of truncated texts above which the budget is too small."""


class Advice(NamedTuple):
    """What a probe leads to.

    Attributes:
        settings: ``key=value`` words for the command line.
        reasons: one sentence for each group of them, or a warning without settings.
    """

    settings: list[str]
    reasons: list[str]


def advise(
    *, success: float, truncated: float, max_new_tokens: int, num_prompts: int, per_prompt: int, batch_size: int
) -> Advice:
    """Choose a budget of tokens, a number of rollouts and rounds for a success rate of the base.

    Args:
        success: share of texts that the oracle accepted.
        truncated: share of texts that were cut off by the budget.
        max_new_tokens: that budget.
        num_prompts: training prompts.
        per_prompt: rollouts of each as configured.
        batch_size: rollouts in an optimiser step.
    """
    settings, reasons = [], []
    if truncated > CUT_OFF:
        settings.append(f"rollouts.max_new_tokens={2 * max_new_tokens}")
        reasons.append(f"{truncated:.0%} of the texts were cut off and count as rejected; give them more tokens")
    if success == 0.0:
        reasons.append(
            "no text was accepted: check the oracle on a text that it should accept; if it is right but rare, draw in "
            "rounds and give it many rollouts"
        )
        return Advice([*settings, *_rounds(MOST_PER_PROMPT)], reasons)
    if success > COMMON:
        reasons.append(f"the base obeys in {success:.0%} of its texts; there is little to learn, rejection costs less")
    wanted = math.ceil(WANTED / (success * max(1, num_prompts)))
    rollouts = min(max(wanted, 4), MOST_PER_PROMPT)
    if success < RARE:
        settings += _rounds(rollouts)
        reasons.append(f"the base obeys in {success:.1%} of its texts; later rounds draw from the model under training")
    elif rollouts > per_prompt:
        settings.append(f"rollouts.per_prompt={rollouts}")
        reasons.append(f"about {WANTED} accepted rollouts are wanted for training")
    everything = num_prompts * max(rollouts, per_prompt)
    if everything < batch_size:
        settings.append(f"optim.batch_size={max(1, everything // 2)}")
        reasons.append(f"{num_prompts} prompts give {everything} rollouts, fewer than optim.batch_size={batch_size}")
    return Advice(settings, reasons)


def _rounds(per_prompt: int) -> list[str]:
    return [f"rollouts.per_prompt={max(8, per_prompt)}", "rollouts.rounds=4", "targets.weights=balance"]
