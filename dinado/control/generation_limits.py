"""What ``generate()`` of a controlled model refuses: settings that would be ignored, or would give wrong texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from dinado.bases.joint_cache import check_kind
from dinado.errors import UserError

FROM_A_HUB = {
    "penalty_alpha": "contrastive search",
    "dola_layers": "DoLa decoding",
    "constraints": "constrained beam search",
    "force_words_ids": "constrained beam search",
    "diversity_penalty": "group beam search",
}
"""Settings of decoding modes for which transformers would run code from a hub."""
NEEDS_MORE = {
    "assistant_early_exit": "the layers of one transformer",
    "use_mtp": "a model that predicts several tokens",
    "speculation_type": "the embeddings of one transformer",
    "output_attentions": "the attention of one transformer",
    "output_hidden_states": "the hidden states of one transformer",
}
"""Settings that need what two models side by side do not have."""
OWN_ALPHA = {
    "assistant_model": "is given every argument of the call, alpha too",
    "guidance_scale": "runs the model again without it",
    "token_healing": "runs the model again without it",
}
"""Settings with which transformers loses or misplaces an argument of the call."""


def check_alpha(alpha: Any) -> float:
    """Return a control strength as a number.

    Raises:
        UserError: it is not a finite number.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"alpha={alpha}: the control strength is one finite number, such as 1.0")
    return float(alpha)


def check_call(given: Mapping[str, Any], own: GenerationConfig) -> None:
    """Check the arguments of a call of ``generate()``.

    Args:
        given: the arguments by name.
        own: the model's generation settings, which stand in for those that the call leaves out.

    Raises:
        UserError: one of them cannot be done right.
    """

    def asked(name: str) -> Any:
        for source in (given.get(name), getattr(given.get("generation_config"), name, None), getattr(own, name, None)):
            if source is not None:
                return source
        return None

    for name, mode in FROM_A_HUB.items():
        if asked(name):
            raise UserError(f"{name}: {mode} would run code from a hub; sample, or search greedily or with beams")
    if (asked("num_beam_groups") or 1) > 1:
        raise UserError("num_beam_groups: group beam search would run code from a hub; leave it out")
    if isinstance(given.get("custom_generate"), str):
        raise UserError("custom_generate would run code from a hub or folder; give a function")
    for name, lacking in NEEDS_MORE.items():
        if asked(name):
            raise UserError(f"{name} needs {lacking}, which a controlled model is not; leave it out")
    kind = asked("cache_implementation")
    if kind not in (None, "dynamic"):
        raise UserError(f"cache_implementation={kind}: base and control share one plain dynamic cache; leave it out")
    if given.get("past_key_values") is not None:
        _check_continued(given["past_key_values"], given)
    if given.get("inputs_embeds") is not None:
        raise UserError("inputs_embeds: the control reads tokens; give input_ids")
    _check_mask(given.get("attention_mask"))
    assisted = asked("assistant_model") is not None or asked("prompt_lookup_num_tokens") is not None
    if assisted and (asked("num_beams") or 1) > 1:
        raise UserError("assistant_model and prompt_lookup_num_tokens do not go with beams; set num_beams=1")
    if given.get("alpha") is not None:
        _check_own_alpha({name: asked(name) for name in OWN_ALPHA})


def _check_own_alpha(asked: Mapping[str, Any]) -> None:
    for name, reason in OWN_ALPHA.items():
        if asked[name] not in (None, False, 1, 1.0):
            raise UserError(f"alpha: {name} {reason}; build ControlledLM(model.scores, alpha) and call that")


def _check_continued(cache: Any, given: Mapping[str, Any]) -> None:
    """Refuse a cache of another kind, or one that holds all of the text already; transformers would cut the text."""
    check_kind(cache)
    texts = (given.get(name) for name in ("attention_mask", "input_ids", "inputs"))
    width = next((text.shape[1] for text in texts if text is not None), None)
    if width is not None and 0 < width <= (seen := cache.get_seq_length()):
        raise UserError(
            f"past_key_values holds {seen} tokens, and the text has {width}; give the whole text, or an empty cache"
        )


def _check_mask(mask: Tensor | None) -> None:
    if mask is None:
        return
    if mask.ndim != 2:
        raise UserError(f"attention_mask has {mask.ndim} dimensions; give one of [rows, tokens]")
    if bool((mask[:, -1] == 0).any()):
        raise UserError("attention_mask ends in padding, from which nothing can continue; pad prompts on the left")
