"""A key-value cache with room to grow in place; transformers' own cache copies all keys and values at every token.

Axes: N rows, H heads, L positions, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A cache layer whose keys and values are the filled part of larger tensors, for decoding without gradients.

    Args:
        layer: the layer whose keys and values are taken over.
        room: number of positions to allocate; when they run out, twice as many are added.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.room = room
        self._hold(layer.keys, layer.values, room)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append in place; return all keys and values so far, ``[N, H, L, D]``."""
        start, stop = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        capacity = self._keys_NHLD.shape[2]
        if stop > capacity:
            self.room = max(2 * self.room, stop - start)
            self._hold(self.keys, self.values, self.room)
        elif self.keys.data_ptr() != self._keys_NHLD.data_ptr():  # rows were dropped, or beams reordered
            self._hold(self.keys, self.values, capacity - start)
        self._keys_NHLD[:, :, start:stop] = key_states
        self._values_NHLD[:, :, start:stop] = value_states
        self.keys, self.values = self._keys_NHLD[:, :, :stop], self._values_NHLD[:, :, :stop]
        return self.keys, self.values

    def _hold(self, keys: Tensor, values: Tensor, room: int) -> None:
        length = keys.shape[2]
        self._keys_NHLD, self._values_NHLD = (
            torch.empty((*t.shape[:2], length + room, t.shape[3]), dtype=t.dtype, device=t.device)
            for t in (keys, values)
        )
        self._keys_NHLD[:, :, :length], self._values_NHLD[:, :, :length] = keys, values
        self.keys, self.values = self._keys_NHLD[:, :, :length], self._values_NHLD[:, :, :length]


def make_room(cache: Cache, room: int) -> None:
    """Give the plain layers of a cache room for ``room`` more positions; layers of other kinds are left unchanged."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[index] = RoomyLayer(layer, room)
