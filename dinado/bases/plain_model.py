"""A base's prompts and sampling as plain transformers reads them from a folder: tokenizer, template, settings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from dinado.bases.causal import BaseLM
from dinado.bases.frozen_date import template_of


def sampling_settings(base: BaseLM, max_new_tokens: int) -> GenerationConfig:
    """Return the settings with which ``generate()`` samples p = softmax(logits / temperature) of a base.

    Every setting that changes the distribution is written out, since an absent one takes another default.
    """
    settings = GenerationConfig(
        do_sample=True,
        temperature=base.temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=list(base.eos_ids),
        pad_token_id=base.pad_id,
        max_new_tokens=max_new_tokens,
    )
    settings.bos_token_id = base.model.generation_config.bos_token_id
    return settings


def prompt_template(base: BaseLM) -> str | None:
    """Return a chat template that renders a request as the base does, its system prompt and date included.

    None stands for a base that reads prompts as plain text.
    """
    template = template_of(base.tokenizer) if base.chat_template else None
    if template is None or base.system_prompt is None:
        return template
    # The empty expression keeps a line break at the start of the template, which would be trimmed after a block.
    return (
        "{% if messages[0]['role'] != 'system' %}"
        f"{{% set messages = [{{'role': 'system', 'content': {base.system_prompt!r}}}] + messages %}}"
        f"{{% endif %}}{{{{ '' }}}}{template}"
    )


def save_tokenizer(base: BaseLM, folder: Path) -> None:
    """Save the base's tokenizer with the template of :func:`prompt_template`, or without any."""
    plain: Any = copy.copy(base.tokenizer)
    vars(plain).pop("apply_chat_template", None)  # the one with a frozen date, which the template has now
    plain.chat_template = prompt_template(base)
    plain.save_pretrained(folder)
