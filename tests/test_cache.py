"""A cache with room holds what transformers' own cache holds."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from dinado.bases.roomy_cache import RoomyLayer, make_room


def states(length: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, length, 4), torch.randn(rows, 2, length, 4)


@pytest.mark.parametrize("room", [1, 2, 50])
def test_it_is_the_plain_layer_without_the_copies(room: int) -> None:
    torch.manual_seed(0)
    plain = DynamicLayer()
    plain.update(*states(5))
    roomy = RoomyLayer(plain, room)

    def same() -> None:
        torch.testing.assert_close(roomy.keys, plain.keys, rtol=0, atol=0)
        torch.testing.assert_close(roomy.values, plain.values, rtol=0, atol=0)
        assert roomy.get_seq_length() == plain.get_seq_length()

    same()
    for length in (1, 1, 3, 1):
        new = states(length)
        for got, wanted in zip(roomy.update(*new), plain.update(*new), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    for change in ("batch_select_indices", "reorder_cache"):
        for layer in (roomy, plain):
            getattr(layer, change)(torch.tensor([2, 0]) if change == "batch_select_indices" else torch.tensor([1, 1]))
        same()
        new = states(1, rows=2)
        roomy.update(*new), plain.update(*new)
        same()
    for layer in (roomy, plain):
        layer.crop(-4)
        layer.update(*states(0, rows=2))
    same()


def test_appending_does_not_move_what_is_there() -> None:
    plain = DynamicLayer()
    plain.update(*states(5))
    roomy = RoomyLayer(plain, 3)
    before = roomy.keys.data_ptr()
    for _ in range(3):
        roomy.update(*states(1))
    assert roomy.keys.data_ptr() == before
    roomy.update(*states(1))
    assert roomy.keys.data_ptr() != before and roomy.get_seq_length() == 9


def test_dropping_rows_again_and_again_takes_no_more_room_than_was_asked_for() -> None:
    plain = DynamicLayer()
    plain.update(*states(5, rows=12))
    roomy = RoomyLayer(plain, 10)
    for left in range(11, 1, -1):
        roomy.update(*states(1, rows=left + 1))
        roomy.batch_select_indices(torch.arange(left))
        assert roomy.keys.untyped_storage().nbytes() <= (left + 1) * 2 * 15 * 4 * 4
    assert roomy.get_seq_length() == 15


def test_only_plain_layers_in_use_are_replaced() -> None:
    class Cache:
        layers = [DynamicLayer(), DynamicLayer(), object()]

    Cache.layers[0].update(*states(2))
    kept = list(Cache.layers)
    make_room(Cache, 4)  # type: ignore[arg-type]
    assert isinstance(Cache.layers[0], RoomyLayer) and Cache.layers[1:] == kept[1:]
