"""What a base reads: prompts encoded once, and checks of them before anything is sampled.

Whatever would fail in the middle of the sampling, or sample from another distribution than the user thinks, is one line
here: templates, lengths, token ids, end-of-sequence tokens.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from dinado.bases.causal import BaseLM
from dinado.errors import DataError
from dinado.prompt import Prompt

_CONTEXT = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len")
_ANSWER = "The answer is 42."
_known: WeakKeyDictionary[BaseLM, dict[Any, array[int]]] = WeakKeyDictionary()


def encoded(base: BaseLM, prompt: Prompt) -> array[int]:
    """Return the token ids of a prompt; each text is encoded once for a base.

    Raises:
        DataError: the chat template cannot render it, or nothing is left of it.
    """
    known, key = _known.setdefault(base, {}), (prompt.text, prompt.turns, base.chat_template, base.system_prompt)
    if key not in known:
        try:
            ids = base.encode_prompts([prompt])[0][0].tolist()
        except DataError:
            raise
        except Exception as error:
            raise _refused(base, prompt, error) from error
        known[key] = array("q", ids)
    return known[key]


def forget(base: BaseLM) -> None:
    """Drop the token ids that are kept of prompts, of which a stream has no end."""
    _known.pop(base, None)


def encoded_digest(base: BaseLM, prompts: Sequence[Prompt]) -> str:
    """Return a hash of what the base reads for some prompts: it changes with template, date and tokenizer."""
    digest = hashlib.sha256()
    for prompt in prompts:
        ids = encoded(base, prompt)
        digest.update(f"{len(ids)}:".encode() + ids.tobytes())
    return digest.hexdigest()[:16]


def check_tokens(base: BaseLM) -> None:
    """Check that padding and end-of-sequence tokens have an embedding, and that a system prompt has a template.

    Raises:
        DataError: one of them has none.
    """
    rows = _rows(base)
    for what, ids in (("end-of-sequence", base.eos_ids), ("padding", (base.pad_id,))):
        for token in ids:
            if not 0 <= token < rows:
                raise DataError(
                    f"base.name={base.name}: its {what} token is {token} and the embedding has {rows} rows; correct "
                    f"{'pad' if what == 'padding' else 'eos'}_token in tokenizer_config.json or generation_config.json"
                )
    if base.system_prompt is not None and not base.chat_template:
        raise DataError(f"base.system_prompt: ignored, {base.name} is used without a chat template; leave it out")


def check_prompts(
    base: BaseLM, prompts: Sequence[Prompt], budget: int, key: str = "rollouts.max_new_tokens", least: str = ""
) -> None:
    """Encode prompts, and check that each has an embedding for every token and fits the context with its response.

    Args:
        budget: largest number of tokens in a response.
        key: name of the budget in messages.
        least: what the budget is, where it is no setting.

    Raises:
        DataError: a prompt cannot be encoded, has a token without an embedding, or is too long.
    """
    rows, (name, limit) = _rows(base), _context(base)
    for prompt in prompts:
        ids = encoded(base, prompt)
        if (largest := max(ids)) >= rows:
            token = base.tokenizer.convert_ids_to_tokens([largest])[0]
            raise DataError(
                f"prompt {prompt.id!r} has token {largest} ({token!r}) and the embedding of {base.name} has {rows} "
                "rows; tokenizer and model do not belong together"
            )
        # The last token of a response is not read.
        if limit is not None and len(ids) + budget - 1 > limit:
            raise DataError(
                f"prompt {prompt.id!r} has {len(ids)} tokens and {least or f'{key}={budget}'}, which together exceed "
                f"the context of {base.name} ({name}={limit}); shorten it, or lower {key}"
            )
    if base.chat_template and base.system_prompt and prompts:
        _check_system_prompt(base, prompts[0])


def end_token(base: BaseLM) -> int:
    """Return the token that ends a complete response: the chat template's end of turn, or the tokenizer's end.

    A token that would not end a sample is not taken; the first end-of-sequence token stands in.
    """
    for token in (end_of_turn(base), base.tokenizer.eos_token_id):
        if token in base.eos_ids:
            return int(token)
    return base.eos_ids[0]


def end_of_turn(base: BaseLM) -> int | None:
    """Return the special token that the chat template puts after the assistant's text; None if there is none."""
    if not base.chat_template:
        return None
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = base.tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template for prompts alone
        return None
    _, found, after = text.rpartition(_ANSWER)
    added = getattr(base.tokenizer, "added_tokens_decoder", {})
    special = {*base.tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
    ids = base.tokenizer(after, add_special_tokens=False)["input_ids"] if found else []
    return next((token for token in ids if token in special), None)


def contradictions(base: BaseLM) -> Iterator[str]:
    """Yield a warning for each token that the template or the tokenizer ends with and that does not end a sample."""
    tokens = {"chat template": end_of_turn(base), "tokenizer": base.tokenizer.eos_token_id}
    if tokens["chat template"] in base.eos_ids:
        return
    for source, token in tokens.items():
        if token is not None and token not in base.eos_ids:
            names = base.tokenizer.convert_ids_to_tokens([token, *base.eos_ids])
            yield (
                f"{base.name}: its {source} ends a response with {names[0]} and its generation_config.json with "
                f"{' or '.join(map(str, names[1:]))}, which ends a sample here; correct eos_token_id if that is wrong"
            )


def _check_system_prompt(base: BaseLM, prompt: Prompt) -> None:
    with_it, without = (
        base.tokenizer.apply_chat_template(prompt.messages(system), tokenize=False, add_generation_prompt=True)
        for system in (base.system_prompt, None)
    )
    if with_it == without:
        raise DataError(f"base.system_prompt: the chat template of {base.name} leaves it out; remove it")


def _refused(base: BaseLM, prompt: Prompt, error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not base.chat_template:
        return DataError(f"prompt {prompt.id!r} cannot be encoded by the tokenizer of {base.name} ({reason})")
    fix = "set base.chat_template=false or another base"
    if base.system_prompt is not None:
        fix = f"it may take no system message: leave out base.system_prompt, or {fix}"
    return DataError(f"base.name={base.name}: its chat template fails on prompt {prompt.id!r} ({reason}); {fix}")


def _rows(base: BaseLM) -> int:
    """Return the number of tokens that have an embedding."""
    try:
        return int(base.model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return base.vocab_size


def _context(base: BaseLM) -> tuple[str, int | None]:
    """Return the setting of the model that limits its positions and its value, None where nothing limits them."""
    config = base.model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    values = config.to_dict()
    if values.get("alibi") or (values.get("attn_config") or {}).get("alibi"):  # distances, which have no end
        return "", None
    for name in _CONTEXT:
        if isinstance(values.get(name), int) and values[name] > 0:
            return name, values[name]
    return "", None
