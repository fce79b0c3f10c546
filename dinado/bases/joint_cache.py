"""One cache object for several models: each gets a range of its layers as a cache of its own."""

from __future__ import annotations

from typing import Any

from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from dinado.bases.roomy_cache import RoomyLayer
from dinado.errors import UserError

MARK = "dinado_filled"
"""Attribute of a cache that says which models filled how many of its layers; a copy of the cache keeps it."""


def layers_of(cache: Cache, start: int, stop: int) -> DynamicCache:
    """Return some layers of a cache as a cache of its own; the layer objects are shared, not copied."""
    while len(cache.layers) < stop:
        cache.layers.append(DynamicLayer())
    view = DynamicCache()
    view.layers = cache.layers[start:stop]
    return view


def check_kind(cache: Any) -> None:
    """Refuse a cache whose layers several models cannot share: static, offloaded, quantised, or with windows.

    Raises:
        UserError: it is anything but a plain dynamic cache.
    """
    shared = type(cache) is DynamicCache and not cache.offloading
    if shared and all(type(layer) in (DynamicLayer, RoomyLayer) for layer in cache.layers):
        return
    raise UserError(
        f"past_key_values is a {type(cache).__name__} that base and control cannot share (static, offloaded, quantised "
        "or with windows); give DynamicCache(), or leave it out"
    )


def claim(cache: DynamicCache, layers: int, owner: int) -> None:
    """Refuse a filled cache of other models, or with layers that lag behind; mark it as filled by these.

    Args:
        layers: number of layers that are about to be filled, the first ones; the others lag behind from now on.
        owner: identifies the models that share the cache.

    Raises:
        UserError: keys and values do not belong to these models, or are not of the whole text.
    """
    known, filled = getattr(cache, MARK, (None, 0))
    if not any(layer.get_seq_length() for layer in cache.layers):
        known, filled = owner, layers
    if known != owner:
        raise UserError("past_key_values was filled by another model; give an empty DynamicCache(), or leave it out")
    if filled < layers:
        raise UserError(
            "past_key_values was filled with another alpha, which ran fewer models; give an empty DynamicCache(), or "
            "leave it out"
        )
    setattr(cache, MARK, (owner, layers))
