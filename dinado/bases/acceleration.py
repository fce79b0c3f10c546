"""Compilation and gradient checkpointing of decoder layers.

The gradient checkpointing of transformers works without a cache and in training mode only. Here rollouts share their
prompt through the cache, and a frozen base stays in evaluation mode. Layers are therefore recomputed one by one, each
with the keys and values that it saw in the forward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from dinado.errors import UserError

CACHE_NAMES = ("past_key_values", "layer_past", "past_key_value")
"""Names of a layer's argument for the cache; newest first."""


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the layers of a transformer, in order; an empty list for any other model, or if layers run repeatedly."""
    inner: Any = getattr(model, "model", model)  # a base holds its model
    config = getattr(inner, "config", None)
    # A multimodal model has other layers beside those of its decoder.
    decoder = inner.get_decoder() if config is not None and hasattr(inner, "get_decoder") else model
    layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    expected = len(layers) if config is None else config.get_text_config(decoder=True).num_hidden_layers
    return layers if len(layers) == expected else []


def compile_layers(model: nn.Module) -> None:
    """Compile every layer in place, for any batch size and length; all layers of a kind share one graph.

    A layer's keys and values enter and leave the graph as tensors. A graph that reached into the cache would be
    specialised to one layer number, and a deep model would soon exceed torch's limit of graphs.
    """
    import torch._dynamo  # the import takes a second

    # A layer runs with or without adapters, gradients and earlier keys: more variants than torch's limit of 8.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    compiled = torch.compile(_apart, dynamic=True)
    for transformer in _transformers(model):
        for index, layer in enumerate(decoder_layers(transformer)):
            layer.forward = _with_own_cache(layer.forward, index, compiled, when=_grows_by_copying)


def _transformers(model: nn.Module) -> list[nn.Module]:
    """Return the transformers in a model, such as a base and the network beside it, each with a cache of its own."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():  # outer ones come before their parts
        if isinstance(module, PreTrainedModel) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def checkpoint_layers(model: nn.Module) -> None:
    """Keep only the input, keys and values of each layer, and recompute the rest in the backward pass.

    Raises:
        UserError: the model has no transformer layers.
    """
    layers = decoder_layers(model)
    if not layers:
        raise UserError("trainer.checkpointing: this base has no transformer layers; set trainer.checkpointing=false")
    for index, layer in enumerate(layers):
        layer.forward = _with_own_cache(layer.forward, index, _recomputed, when=_is_training)


class _OneLayer:
    """The keys and values of one layer, which are extended without touching the rest of the cache."""

    def __init__(self, keys: Tensor | None, values: Tensor | None) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; return all of them so far."""
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], -2)
        self.values = values if self.values is None else torch.cat([self.values, values], -2)
        return self.keys, self.values

    def get_seq_length(self, *args: Any) -> int:
        """Return the number of positions so far."""
        return 0 if self.keys is None else self.keys.shape[-2]


Inner = Callable[..., Any]
Outcome = tuple[Any, Tensor | None, Tensor | None]


def _apart(
    inner: Inner, keys: Tensor | None, values: Tensor | None, cached: bool, hidden: Tensor, arguments: dict[str, Any]
) -> Outcome:
    """Run a layer; return its output, and its keys and values afterwards, which are None without a cache."""
    own = _OneLayer(keys, values)
    out = inner(hidden, own if cached else None, **arguments)
    return out, own.keys, own.values


def _recomputed(*arguments: Any) -> Outcome:
    return checkpoint(_apart, *arguments, use_reentrant=False)


def _is_training(layer: Any) -> bool:
    return torch.is_grad_enabled()


def _grows_by_copying(layer: Any) -> bool:
    """Tell whether a layer's cache grows by copying, or is absent.

    While sampling, keys and values grow in place, and a step is too short to gain from a graph.
    """
    return layer is None or type(layer) is DynamicLayer


def _with_own_cache(inner: Inner, index: int, call: Callable[..., Outcome], when: Callable[[Any], bool]) -> Inner:
    """Return a layer's forward that goes through ``call`` (see :func:`_apart`) where ``when`` holds for its cache."""
    signature = inspect.signature(inner)
    states, *names = signature.parameters
    # Older models have other names for a layer's cache.
    past = next((name for name in CACHE_NAMES if name in names), CACHE_NAMES[0])
    rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

    def run(hidden: Tensor, cache: Any, **arguments: Any) -> Any:
        return inner(**{states: hidden, past: cache}, **arguments)

    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        arguments |= arguments.pop(rest, {})
        cache = arguments.pop(past, None)
        layers = getattr(cache, "layers", [])
        seen = layers[index] if index < len(layers) and layers[index].is_initialized else None
        if not when(seen):
            return inner(*args, **kwargs)
        before = (None, None) if seen is None else (seen.keys, seen.values)
        out, keys, values = call(run, *before, cache is not None, arguments.pop(states), arguments)
        if seen is not None:
            seen.keys, seen.values = keys, values
        elif cache is not None:
            cache.update(keys, values, index)
        return out

    return forward
