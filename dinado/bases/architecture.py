"""What an architecture allows: its window, the longest text, and how its hidden states become logits.

Axes: L positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dinado.errors import UserError

ATTENTION = ("full_attention", "sliding_attention")
"""Kinds of layers whose keys and values one plain cache holds."""
LENGTH_SCALINGS = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies change once a text exceeds the original length; cached keys would be stale."""
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_mup_width_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap")


def text_config(model: Any) -> Any:
    """Return the configuration of the language model, which a multimodal model holds inside its own."""
    return model.config.get_text_config(decoder=True)


def state_width(model: Any) -> int:
    """Return the width of a model's hidden states, the widest where layers and last states differ (OPT-350m)."""
    return max(getattr(text_config(model), "hidden_size", 0), model.get_output_embeddings().weight.shape[1])


def widened(states: Tensor, width: int) -> Tensor:
    """Return states with zeros appended up to a width."""
    return states if states.shape[-1] == width else F.pad(states, (0, width - states.shape[-1]))


def refuse_architecture(model: Any, name: str) -> None:
    """Refuse kinds of models that no path here computes right.

    Raises:
        UserError: an encoder-decoder model, or one whose layers are recurrent, chunked or indexed.
    """
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or ())
    where = f"base.name={name}: {type(model).__name__}"
    if getattr(type(model.config), "is_encoder_decoder", False) is True or model.config.is_encoder_decoder:
        raise UserError(f"{where} is an encoder-decoder model or a part of one; give a causal language model")
    if "chunked_attention" in kinds:
        raise UserError(f"{where} attends within chunks of slots, which padding would shift; it is not supported")
    if "indexed_attention" in kinds:
        raise UserError(f"{where} keeps keys of an index in its cache, which prompts cannot share; it is not supported")
    if getattr(model, "_is_stateful", False) or kinds - set(ATTENTION):
        raise UserError(f"{where} has recurrent layers, whose state padding would change; it is not supported")


def window_of(model: Any) -> int | None:
    """Return the number of slots that a token attends to in some layer; None for all, 0 for biases by slot.

    Windows count padding as well. A model of fewer slots is not affected; in a longer one no padding may stand inside.
    """
    config = text_config(model)
    if config.model_type == "mpt":  # its ALiBi biases count slots
        return 0
    kinds = getattr(config, "layer_types", None)
    windows = [
        getattr(config, name, None)
        for name in ("sliding_window", "window_size", "attention_window", "attention_window_size", "local_attention")
        if (kinds is None or set(kinds) != {"full_attention"}) and getattr(config, "use_sliding_window", True)
    ]
    return min((window for window in windows if isinstance(window, int) and window > 0), default=None)


def context_of(model: Any) -> int | None:
    """Return the largest number of tokens that the model reads right; None where positions have no limit."""
    config = text_config(model)
    rope = getattr(config, "rope_parameters", None)
    if rope:
        parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]
        limits = [
            part.get("original_max_position_embeddings") or config.max_position_embeddings
            for part in parts
            if part.get("rope_type") in LENGTH_SCALINGS
        ]
        return min(limits, default=None)
    if getattr(config, "alibi", False) is True:
        return None
    # Learned or tabulated positions end where their table does.
    longest = getattr(config, "max_seq_len" if config.model_type == "mpt" else "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def check_length(context: int | None, tokens: int) -> None:
    """Refuse a text of more tokens than the model reads right.

    Args:
        context: see :func:`context_of`.
        tokens: number of tokens that the model reads, the last of a response left out.

    Raises:
        UserError: there are more.
    """
    if context is not None and tokens > context:
        raise UserError(
            f"prompt and response take {tokens} tokens, and the base reads at most {context}; lower "
            "rollouts.max_new_tokens or shorten the prompts"
        )


class OutputMap(NamedTuple):
    """The map from the output embedding's values to logits: ``cap * tanh(scale * x / cap)``, or ``scale * x``."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Return the logits."""
        values = values * self.scale
        return values if self.cap is None else self.cap * torch.tanh(values / self.cap)


@torch.no_grad()
def output_map(model: Any, name: str) -> OutputMap:
    """Return how the model's logits follow from its last hidden state.

    Raises:
        UserError: the model reads later tokens, or its logits are not a scaled or capped linear map of its states.
    """
    out = model.get_output_embeddings()
    where = f"base.name={name}: {type(model).__name__}"
    if not isinstance(getattr(out, "weight", None), Tensor) or model.base_model is model:
        raise UserError(f"{where} has no output embedding after its last hidden state; it is not supported")
    try:
        return _measured(model, where)
    except UserError:
        raise
    except Exception as error:  # models outside the common interface fail in as many ways as there are models
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(f"{where} cannot be run on plain text ({reason})") from None


def quantised_by(model: Any) -> str | None:
    """Return the name of the method that the model's weights are quantised with; None for plain weights."""
    settings = getattr(model.config, "quantization_config", None)
    if settings is None:
        return None
    told = settings if isinstance(settings, dict) else settings.to_dict()
    method = told.get("quant_method", "unknown")
    return str(getattr(method, "value", method))


def _measured(model: Any, where: str) -> OutputMap:
    out, body = model.get_output_embeddings(), model.base_model
    # Several tokens, because an end token that also pads may have a zero state, which fits any linear map.
    ids_1L = torch.arange(min(16, out.weight.shape[0]), device=out.weight.device)[None]
    kwargs = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    logits = model(ids_1L, **kwargs).logits.float()
    shorter = model(ids_1L[:, :-1], **kwargs).logits.float()
    if not torch.allclose(logits[:, :-1], shorter, atol=_slack(model), rtol=_slack(model)):
        if quantisation := quantised_by(model):
            raise UserError(
                f"{where} is quantised ({quantisation}) so that a text's numbers depend on the texts beside it; take 4 "
                "bits, or weights alone"
            )
        raise UserError(f"{where} reads later tokens too, as a masked language model does; give a causal one")
    values = out(body(ids_1L, **kwargs).last_hidden_state).float()
    for candidate in _candidates(text_config(model), logits, values):
        if torch.allclose(logits, candidate(values), atol=1e-3, rtol=1e-3):
            return candidate
    raise UserError(
        f"{where}: its logits are not a linear map of its hidden states, scaled or soft-capped; such models are not "
        "supported"
    )


def _candidates(config: Any, logits: Tensor, values: Tensor) -> Iterator[OutputMap]:
    """Yield the maps that a configuration may mean, and last a scale that is measured."""
    found = [float(value) for name in SCALES if (value := getattr(config, name, None))]
    scales = [1.0, *found, *(1 / value for value in found)]
    caps = [None, *(float(value) for name in CAPS if (value := getattr(config, name, None)))]
    yield from (OutputMap(scale, cap) for cap, scale in product(caps, scales))
    if logits.dtype == torch.float32:
        exact, linear = logits.double(), values.double()
        yield OutputMap(float((exact * linear).sum() / linear.square().sum().clamp_min(1e-30)))


def _slack(model: Any) -> float:
    return 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1
