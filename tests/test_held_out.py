"""Held-out rollouts: K of each prompt, and on to the first accepted one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datamodule_case import make_config, prompts, words_task

from datamodules.fill_stores import StoreFiller
from datamodules.held_out import HeldOut, HeldOutRollouts
from datamodules.run_stores import RunStores
from datamodules.state_choice import StateChoice
from datamodules.tasks import Task
from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_markov
from dinado.metrics.distance import distance
from dinado.oracles import Oracle
from dinado.prompt import Prompt
from dinado.rollouts.rollout_store import RolloutStore


class StartsWithTwo(Oracle):
    """1, or a given share, where the text starts with word 2 and says it twice."""

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [self.share * (text.split()[:1] == ["2"] and text.split().count("2") > 1) for text in texts]


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return BaseLM(*build_markov(5, seed=3))


def read(
    cache: Path, base: BaseLM, oracle: Oracle, drawn: int, limit: int, val: Sequence[Prompt] | None = None
) -> HeldOutRollouts:
    config = make_config(cache, eval__rollouts_per_prompt=drawn, eval__max_rollouts=limit)
    filler = StoreFiller(base, oracle, StateChoice(config, base), progress=False)
    held_out = HeldOut(
        config, base, Task("words", prompts("train"), list(val or prompts("val")), oracle, has_references=False)
    )
    filler.fill_held_out(held_out)
    return held_out.read()


def text_of(rollouts: object, row: int) -> str:
    return rollouts.text(row)  # type: ignore[attr-defined]


def test_draws_go_on_to_the_first_accepted_one(tmp_path: Path, base: BaseLM) -> None:
    oracle = StartsWithTwo()
    few, many = read(tmp_path / "few", base, oracle, 2, 128), read(tmp_path / "many", base, oracle, 128, 128)
    of_many = many.rollouts
    assert few.later, "some prompt has no accepted rollout among two"
    for one in few.later:
        rows = np.flatnonzero(of_many.prompt_index_N == one.place)
        accepted = np.flatnonzero(of_many.score_N[rows] > 0.5)
        assert one.draw == accepted[0] + 1 > 2, "the first accepted one of the same stream of rollouts"
        assert text_of(one.rollouts, one.row) == of_many.text(int(rows[accepted[0]]))
    resolved = {one.place for one in few.later} | set(few.rollouts.prompt_index_N[few.accepted_N].tolist())
    assert resolved == set(of_many.prompt_index_N[many.accepted_N].tolist())
    estimates = [distance(found.of_base()).base.mean for found in (few, many)]
    assert estimates[0] == pytest.approx(estimates[1], abs=1.5)


def test_the_rows_hold_the_later_rollouts_last(tmp_path: Path, base: BaseLM) -> None:
    found = read(tmp_path, base, StartsWithTwo(), 2, 64)
    rows = found.rows()
    drawn = len(found.rollouts)
    assert len(rows) == drawn + len(found.later) and rows.most >= 2
    assert rows.draw_N is not None and rows.accepted_N is not None
    assert (rows.draw_N[:drawn] == 0).all() and (rows.draw_N[drawn:] > 2).all() and rows.accepted_N[drawn:].all()
    tokens, log_p = rows.response(drawn)
    assert len(tokens) == len(log_p) == rows.length_N[drawn] and rows.score_N[drawn] == 1


def test_a_limit_at_k_draws_no_more(tmp_path: Path, base: BaseLM) -> None:
    found = read(tmp_path, base, StartsWithTwo(), 4, 4)
    assert found.later == [] and found.most == 4


def test_drawing_stops_where_it_is_hopeless(tmp_path: Path, base: BaseLM) -> None:
    # After 8 draws of each of 30 prompts the success rate is below 3 / 240, so 32 draws would not do.
    many = tuple(Prompt(f"p{i}", str(1 + i % 4)) for i in range(30))
    found = read(tmp_path, base, StartsWithTwo(share=0.0), 4, 32, many)
    assert found.later == [] and found.most == 8
    assert distance(found.of_base()).wanted is not None


def test_a_fractional_verdict_accepts_by_chance(tmp_path: Path, base: BaseLM) -> None:
    whole, half = (read(tmp_path / str(share), base, StartsWithTwo(share), 256, 256) for share in (1.0, 0.5))
    assert set(np.flatnonzero(half.accepted_N)) < set(np.flatnonzero(whole.accepted_N))
    share = half.accepted_N.sum() / whole.accepted_N.sum()
    assert 0.3 < share < 0.7
    again = read(tmp_path / "0.5", base, StartsWithTwo(0.5), 256, 256)
    assert (again.accepted_N == half.accepted_N).all()


def test_what_is_drawn_is_kept(tmp_path: Path, base: BaseLM, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path, base, StartsWithTwo(), 2, 64)
    monkeypatch.setattr(RolloutStore, "write_texts", lambda *_: pytest.fail("drawn again"))
    read(tmp_path, base, StartsWithTwo(), 2, 64)
    config = make_config(tmp_path, eval__rollouts_per_prompt=2)
    first = RunStores(config, base, words_task()).held_out()
    more = RunStores(config, base, words_task()).held_out(2, 2, [1])
    assert first.spec.fingerprint != more.spec.fingerprint and more.spec.streams(0) == [1]
