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
from transformers.modeling_layers import GradientCheckpointingLayer

from dinado.errors import UserError


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers of a transformer, in order; none for a model that is none."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(model: nn.Module) -> None:
    """Compile every layer in place, for any batch and length: one graph serves all layers of a kind."""
    for layer in decoder_layers(model):
        layer.forward = torch.compile(layer.forward, dynamic=True)


def checkpoint_layers(model: nn.Module) -> None:
    """Keep only what goes into each layer and its keys and values; the rest is computed again in the backward pass.

    Raises:
        UserError: the model has no layers to do that for.
    """
    layers = decoder_layers(model)
    if not layers:
        raise UserError("trainer.checkpointing: this base has no transformer layers; set trainer.checkpointing=false")
    for index, layer in enumerate(layers):
        layer.forward = _recomputed(layer.forward, index)


class _OneLayer:
    """The part of a cache that one layer sees: appends without touching the rest."""

    def __init__(self, keys: Tensor | None, values: Tensor | None) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values so far, the new ones included."""
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], -2)
        self.values = values if self.values is None else torch.cat([self.values, values], -2)
        return self.keys, self.values


def _recomputed(inner: Callable[..., Any], index: int) -> Callable[..., Any]:
    signature = inspect.signature(inner)

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        cache = bound.arguments.get("past_key_values")
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        hidden = bound.arguments["hidden_states"]
        layers = getattr(cache, "layers", [])
        seen = layers[index] if index < len(layers) and layers[index].is_initialized else None

        def run(hidden: Tensor, keys: Tensor | None, values: Tensor | None) -> Any:
            bound.arguments["hidden_states"] = hidden
            if cache is None:
                return inner(*bound.args, **bound.kwargs), None, None
            own = _OneLayer(keys, values)
            bound.arguments["past_key_values"] = own
            out = inner(*bound.args, **bound.kwargs)
            return out, own.keys, own.values

        before = (None, None) if seen is None else (seen.keys, seen.values)
        out, keys, values = checkpoint(run, hidden, *before, use_reentrant=False)
        if cache is not None and seen is None:
            cache.update(keys, values, index)
        elif seen is not None:
            seen.keys, seen.values = keys, values
        return out

    return forward
