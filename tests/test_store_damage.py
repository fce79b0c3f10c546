"""Damaged files, exchanged oracles and oracles that fail: found, reported, repaired, and nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from store_case import PROMPTS, Contains, FailsOn, content, make_store, rows

from dinado.bases.causal import BaseLM
from dinado.errors import OracleError, StoreError
from dinado.prompt import Prompt
from dinado.rollouts import collect as collecting
from dinado.rollouts.collect import collect


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def empty(data: bytes) -> bytes:
    return b""


def flip(position: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        index = min(int(position * len(data)), len(data) - 1)
        return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]

    return change


FLIPS = [flip(0.0), flip(0.3), flip(0.5), flip(0.9), flip(1.0)]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[("block-00001.arrow", damage) for damage in (truncate, empty, *FLIPS)],
        *[("scores-*/block-00001.arrow", damage) for damage in (truncate, empty, *FLIPS)],
        # In the file of checksums only the checksum counts, the name after it is for people.
        *[("block-00001.arrow.sha256", damage) for damage in (truncate, empty, flip(0.0), flip(0.5))],
    ],
)
def test_damage_is_found_reported_and_repaired(
    cache: Path, base: BaseLM, whole: dict, name: str, damage: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(cache, base)
    collect(base, Contains(), store)
    (path,) = (store.folder / "round-000").glob(name)
    path.write_bytes(damage(path.read_bytes()))
    caplog.clear()
    with pytest.raises(StoreError, match="lacks 1 of 4 blocks"):
        make_store(cache, base).read()
    assert [record.message.count("\n") for record in caplog.records] == [0]
    assert "block-00001.arrow is damaged" in caplog.text
    collect(base, Contains(), store)
    assert content(store) == whole


def test_scores_of_other_texts_are_not_used(cache: Path, base: BaseLM) -> None:
    """A score file belongs to the very texts it judged."""
    store, other = make_store(cache, base), make_store(cache, base, seed=1)
    for each in (store, other):
        collect(base, Contains(), each)
    for suffix in ("", ".sha256"):
        name = f"round-000/block-00001.arrow{suffix}"
        (store.folder / name).write_bytes((other.folder / name).read_bytes())
    assert store.missing_blocks() == [1]


def test_another_oracle_scores_the_same_texts(cache: Path, base: BaseLM, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(base, Contains(), make_store(cache, base))
    monkeypatch.setattr(collecting, "sample", lambda *_, **__: pytest.fail("sampled again"))
    oracle = Contains("2")
    other = make_store(cache, base, oracle)
    assert other.missing_blocks() == [0, 1, 2, 3]
    collect(base, oracle, other)
    expected = [float("2" in row[2].split() and row[1][-1] == 0) for row in rows(other.read())]
    assert other.read().score_N.tolist() == expected
    assert make_store(cache, base).is_complete()


def test_what_the_oracle_knows_about_a_prompt_is_part_of_the_scores(cache: Path, base: BaseLM) -> None:
    collect(base, Contains(), make_store(cache, base))
    renamed = (Prompt("p0", PROMPTS[0].text, {"wanted": "4"}), *PROMPTS[1:])
    store = make_store(cache, base, prompts=renamed)
    assert store.has_texts(0) and not store.has_scores(0)


def test_a_failing_oracle_loses_nothing(
    cache: Path, base: BaseLM, whole: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = FailsOn()
    store = make_store(cache, base, oracle)
    with pytest.raises(OracleError, match=r"'p4'.*text"):
        collect(base, oracle, store)
    assert [store.has_texts(block) for block in range(4)] == [True, True, True, False]
    assert store.missing_blocks() == [2, 3]
    sampled = []
    real = collecting.sample
    monkeypatch.setattr(collecting, "sample", lambda *args, **named: sampled.append(1) or real(*args, **named))
    collect(base, Contains(), make_store(cache, base))
    assert len(sampled) == 1
    assert content(store).items() >= whole.items()
