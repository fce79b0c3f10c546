"""Training rows made of the task's references, for imitation without rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.training_rows import Rows
from dinado.bases.causal import BaseLM
from dinado.bases.prompt_checks import end_token
from dinado.errors import DataError
from dinado.prompt import Prompt

UNKNOWN_ROOT = 0.5
"""Placeholder for R(c), which imitation does not use."""


def rows_of_references(prompts: Sequence[Prompt], base: BaseLM) -> Rows:
    """Build a row of every reference of every prompt, with the token that ends a turn, score 1 and weight 1.

    Log-probabilities under the base are unknown. A prompt that has rejected completions alone has no row.

    Raises:
        DataError: a prompt has no references, or no row is left.
    """
    tokens: list[np.ndarray] = []
    end = end_token(base)
    prompt_index: list[int] = []
    for index, prompt in enumerate(prompts):
        if not prompt.references and not prompt.rejected:
            raise DataError(f"prompt {prompt.id!r} has no references; set sft_data=positives or add references")
        for reference in prompt.references:
            tokens.append(np.array(encode_reference(prompt, reference, base, end), dtype=np.int32))
            prompt_index.append(index)
    if not tokens:
        raise DataError("every completion is labelled false, so there is nothing to imitate; check task.label_field")
    ones_N = np.ones(len(tokens), dtype=np.float32)
    return Rows(
        prompt_index_N=np.array(prompt_index),
        length_N=np.array([len(row) for row in tokens]),
        score_N=ones_N,
        weight_N=ones_N,
        root_N=UNKNOWN_ROOT * ones_N,
        response=lambda row: (tokens[row], None),
    )


def encode_reference(prompt: Prompt, reference: str, base: BaseLM, end: int) -> list[int]:
    """Return the token ids of a reference as a response of the base, with the token ``end`` after it."""
    # Without a chat template the response continues the text of the prompt, so a space has to separate them.
    continues = not base.chat_template and prompt.text and not prompt.text[-1].isspace()
    text = f" {reference}" if continues else reference
    return [*base.tokenizer(text, add_special_tokens=False)["input_ids"], end]
