"""What is checked before anything is sampled, in a dry run too: that the base can read what it will be given."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from datamodules.choose_plan import PlanChoice
from datamodules.reference_rows import encode_reference, rows_of_references
from datamodules.tasks import Task
from dinado.bases.causal import BaseLM
from dinado.bases.prompt_checks import check_prompts, check_tokens, contradictions, end_token
from dinado.prompt import Prompt
from workbench.settings.config import Config
from workbench.settings.derived import row_source

log = logging.getLogger(__name__)


def check_before_sampling(config: Config, base: BaseLM, task: Task) -> None:
    """Check all prompts and references of a run, and warn of contradictory end-of-sequence tokens.

    Raises:
        DataError: a template, a token or a length does not fit the base.
    """
    check_held_out(config, base, task)
    check_prompts(base, task.train_prompts, config.rollouts.max_new_tokens)
    if row_source(config) == "references":
        _check_references(config, base, task.train_prompts)


def check_held_out(config: Config, base: BaseLM, task: Task) -> None:
    """Check what an evaluation alone reads; see :func:`check_before_sampling`."""
    check_tokens(base)
    for warning in contradictions(base):
        log.warning(warning)
    check_prompts(base, task.val_prompts, config.rollouts.max_new_tokens)


def _check_references(config: Config, base: BaseLM, prompts: Sequence[Prompt]) -> None:
    """Check that there are references, enough for a step, and that each fits the context."""
    end = end_token(base)
    for prompt in prompts:
        longest = max((len(encode_reference(prompt, text, base, end)) for text in prompt.references), default=1)
        check_prompts(base, [prompt], longest, key="its references", least=f"a reference of {longest}")
    PlanChoice(config).of(rows_of_references(prompts, base), parts=1)
