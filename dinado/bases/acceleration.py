"""Time and memory of decoder layers: compiling them, and recomputing them in the backward pass.

transformers' own gradient checkpointing does without a cache, and only in training mode. Here the cache is what lets
rollouts share their prompt, and a frozen base stays in evaluation mode, so layers are recomputed one by one with the
keys and values that they saw.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from dinado.errors import UserError


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers of a transformer, in order; none for a model that is none."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(model: nn.Module) -> None:
    """Compile every layer in place, for any batch and length: one graph serves all layers of a kind.

    A layer's own keys and values go in and out as tensors. A graph that reached into the cache would be made for one
    layer number, and a deep model would soon have more graphs than torch keeps.
    """
    import torch._dynamo  # takes a second

    # With and without adapters, gradients, and keys that were there before: more ways to run a layer than torch's 8.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    compiled = torch.compile(_apart, dynamic=True)
    for index, layer in enumerate(decoder_layers(model)):
        layer.forward = _with_own_cache(layer.forward, index, compiled, when=_grows_by_copying)


def checkpoint_layers(model: nn.Module) -> None:
    """Keep only what goes into each layer and its keys and values; the rest is computed again in the backward pass.

    Raises:
        UserError: the model has no layers to do that for.
    """
    layers = decoder_layers(model)
    if not layers:
        raise UserError("trainer.checkpointing: this base has no transformer layers; set trainer.checkpointing=false")
    for index, layer in enumerate(layers):
        layer.forward = _with_own_cache(layer.forward, index, _recomputed, when=_is_training)


class _OneLayer:
    """The part of a cache that one layer sees: appends without touching the rest."""

    def __init__(self, keys: Tensor | None, values: Tensor | None) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values so far, the new ones included."""
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], -2)
        self.values = values if self.values is None else torch.cat([self.values, values], -2)
        return self.keys, self.values


Inner = Callable[..., Any]
Outcome = tuple[Any, Tensor | None, Tensor | None]


def _apart(
    inner: Inner, keys: Tensor | None, values: Tensor | None, cached: bool, hidden: Tensor, arguments: dict[str, Any]
) -> Outcome:
    """What a layer gives, and its keys and values afterwards; these are nothing without a cache."""
    own = _OneLayer(keys, values)
    out = inner(hidden_states=hidden, past_key_values=own if cached else None, **arguments)
    return out, own.keys, own.values


def _recomputed(*arguments: Any) -> Outcome:
    return checkpoint(_apart, *arguments, use_reentrant=False)


def _is_training(layer: Any) -> bool:
    return torch.is_grad_enabled()


def _grows_by_copying(layer: Any) -> bool:
    """Not while sampling, where keys and values grow in place and every step is too short to gain by a graph."""
    return layer is None or type(layer) is DynamicLayer


def _with_own_cache(inner: Inner, index: int, call: Callable[..., Outcome], when: Callable[[Any], bool]) -> Inner:
    """A layer's forward that goes through ``call`` (as :func:`_apart` does) where ``when`` says so of its cache."""
    signature = inspect.signature(inner)

    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        arguments |= arguments.pop("kwargs", {})
        cache = arguments.pop("past_key_values", None)
        layers = getattr(cache, "layers", [])
        seen = layers[index] if index < len(layers) and layers[index].is_initialized else None
        if not when(seen):
            return inner(*args, **kwargs)
        before = (None, None) if seen is None else (seen.keys, seen.values)
        out, keys, values = call(inner, *before, cache is not None, arguments.pop("hidden_states"), arguments)
        if seen is not None:
            seen.keys, seen.values = keys, values
        elif cache is not None:
            cache.update(keys, values, index)
        return out

    return forward
