"""One cache object for several models: each gets a range of its layers as a cache of its own."""

from __future__ import annotations

from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


def layers_of(cache: Cache, start: int, stop: int) -> DynamicCache:
    """Return some layers of a cache as a cache of its own; the layer objects are shared, not copied."""
    while len(cache.layers) < stop:
        cache.layers.append(DynamicLayer())
    view = DynamicCache()
    view.layers = cache.layers[start:stop]
    return view
