"""The estimate of KL(q*||q): no bias, intervals, and what is said where too little is known."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dinado.metrics.distance import PromptDraws, difference, distance, harmonic

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


def draws(accepted: int, first: int | None = None, drawn: int = 4, ratio: float = -1.0, most: int = 64) -> PromptDraws:
    return PromptDraws(drawn, [ratio] * (accepted or int(first is not None)), first, most)


@pytest.mark.parametrize("rate", [0.04, 0.3, 0.9])
@pytest.mark.parametrize("drawn", [1, 4, 9])
def test_the_expectation_of_g_is_minus_log_r(rate: float, drawn: int) -> None:
    expected = sum(stats.binom.pmf(n, drawn, rate) * draws(n, drawn=drawn, most=10**9).gap for n in range(1, drawn + 1))
    for first in range(drawn + 1, 2000):
        expected += rate * (1 - rate) ** (first - 1) * draws(0, first, drawn).gap
    assert expected == pytest.approx(-math.log(rate), abs=1e-9)


def test_two_prompts_by_hand() -> None:
    found = distance([PromptDraws(3, [-1.0, -2.0], None, 9), PromptDraws(3, [-3.0], 5, 9)])
    gaps = [1 / 3, 1 + 1 / 2 + 1 / 3 + 1 / 4]
    assert found.gap_P == pytest.approx(gaps) and found.log_ratio_P == pytest.approx([-1.5, -3.0])
    assert found.kl.mean == pytest.approx((sum(gaps) - 4.5) / 2) and found.base.mean == pytest.approx(sum(gaps) / 2)
    assert found.gap_closed.mean == pytest.approx(4.5 / sum(gaps)) and found.unresolved == 0 and found.wanted is None


def test_a_prompt_that_is_always_accepted_counts() -> None:
    # Its -log R is 0; what the model loses there is part of the distance all the same.
    found = distance([PromptDraws(4, [0.5] * 4, None, 4), draws(2), draws(1)])
    assert found.gap_P[0] == 0 and found.gap_closed.mean == pytest.approx((2 - 0.5) / found.gap_P.sum())


def test_unresolved_prompts_are_filled_in_from_the_others() -> None:
    ratios = {1: -0.5, 2: -0.4, 3: -0.2}
    known = [draws(n, ratio=ratio) for n, ratio in ratios.items()]
    found = distance([*known, draws(0)])
    assert found.unresolved == 1 and found.known_P.tolist() == [1, 1, 1, 0]
    assert found.gap_P[3] > harmonic(64), "more draws would have cost more"
    line = np.polyfit(found.gap_P[:3], list(ratios.values()), 1)
    assert found.log_ratio_P[3] == pytest.approx(np.polyval(line, found.gap_P[3]))
    assert found.kl.low < found.kl.mean < found.kl.high
    exact = [draws(n, ratio=-harmonic(4) + harmonic(n)) for n in (1, 2, 3, 4)]
    assert distance(exact).kl == pytest.approx((0, 0, 0), abs=1e-12), "a model at q* is told so"


def test_too_little_is_withheld_and_says_what_it_takes() -> None:
    for few in ([draws(1), draws(0), draws(0)], [draws(0)], [draws(1), draws(0)]):
        found = distance(few)
        assert all(map(math.isnan, (*found.kl, *found.gap_closed, *found.base))) and len(found.log_ratio_P) == 0
        assert found.wanted is not None and found.wanted > 64 and found.unresolved == sum(not d.log_ratios for d in few)
    # One of 1 + 2 * 64 draws: nine prompts in ten have an accepted one after m with 1 - (1 - 1/132)^m = 0.9.
    assert distance([draws(1), draws(0), draws(0)]).wanted == math.ceil(math.log(0.1) / math.log(1 - 1 / 132))
    assert distance([]).wanted is not None


def test_one_prompt_has_intervals_over_its_rollouts() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        accepted = int(rng.binomial(400, 0.2))
        found = distance([PromptDraws(400, rng.normal(-1, 0.7, accepted).tolist(), None, 400)])
        hits += found.kl.low <= -math.log(0.2) - 1 <= found.kl.high
    assert 270 <= hits <= 298, "about 95 %"
    assert math.isnan(distance([draws(1)]).kl.low)


def test_a_difference_cancels_the_success_rate() -> None:
    rng = np.random.default_rng(1)
    first, gap = rng.normal(size=30), rng.gamma(2, size=30)
    second = first + 0.3 + rng.normal(0, 0.05, 30)
    found = difference(second, first, gap, np.ones(30))
    assert found.low < 0.3 < found.high and found.high - found.low < 0.05
    known = np.ones(30)
    known[:6] = 0
    assert difference(second, first, gap, known).mean == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("place", [1, 3, 4])
def test_intervals_hold_the_truth_about_as_often_as_they_say(place: int) -> None:
    import estimator_coverage as coverage

    found = coverage.measure(coverage.POPULATIONS[place], 24, 8, trials=120, seed=7)
    for name in coverage.NAMES:
        # 0.93 or more is expected; fewer than 0.85 of 120 has a probability below 0.002.
        assert found[name] >= 0.85, name
    assert abs(found["bias"]) < 4 * found["true kl"] / math.sqrt(120)
