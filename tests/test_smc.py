"""Sequential Monte Carlo toward q*, against enumeration of every text of a small world."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from decoding_case import TEXTS, Likes, Never, T, controlled, log_p_of_all, target

from dinado.batch import RolloutBatch
from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.answers import choose_one
from dinado.decoding.log_weights import effective_number, log_mean
from dinado.decoding.resampling import resample
from dinado.decoding.smc import SMCSettings, smc
from dinado.decoding.systematic import ancestors, ancestors_retaining
from dinado.decoding.twists import Twist
from dinado.decoding.weighted_texts import WeightedTexts
from dinado.oracles import Oracle
from dinado.prompt import Prompt


def rough(batch: RolloutBatch, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> np.ndarray:
    """A twist that is of some use, and wrong by a factor of its own for every prefix."""
    return np.log([(0.7 if 2 in row else 0.2) * (1 + hash(tuple(row)) % 5 / 3) for row in tokens])


@pytest.fixture(scope="module")
def model() -> ControlledLM:
    return controlled()


def run(
    model: ControlledLM,
    count: int,
    settings: SMCSettings,
    truncated: str = "score",
    oracle: Oracle | None = None,
    twist: Twist = rough,
    **more: object,
) -> list[WeightedTexts]:
    prompts = [Prompt(str(place), "") for place in range(count)]
    given = {"max_new_tokens": T, "truncated": truncated, "seed": 0} | more
    return smc(model, oracle or Likes(), prompts, twist, settings, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("truncated", ["score", "fail"])
@pytest.mark.parametrize(("threshold", "every"), [(1.0, 1), (0.5, 1), (0.7, 2)])
def test_the_mean_weight_is_unbiased(model: ControlledLM, truncated: str, threshold: float, every: int) -> None:
    _, r = target(model, truncated)
    found = run(model, 700, SMCSettings(4, threshold, every), truncated)
    z_G = np.array([math.exp(log_mean(one.log_weight_K)) for one in found])
    assert z_G.mean() == pytest.approx(r, abs=4 * z_G.std() / math.sqrt(len(z_G)))
    # Particles of one ancestor share their beginning, so that resampling has happened.
    assert any(len({tuple(row[:1]) for row in one.samples.tokens}) == 1 for one in found)


@pytest.mark.parametrize("truncated", ["score", "fail"])
def test_texts_come_from_q_star(model: ControlledLM, truncated: str) -> None:
    q_star, _ = target(model, truncated)
    found = run(model, 400, SMCSettings(32, 0.5, 1), truncated)
    answers = [choose_one(one, place, 32, 0, 0) for place, one in enumerate(found)]
    assert np.mean([answer.accepted for answer in answers]) > 0.9
    answers = [answer for answer in answers if answer.accepted]
    counts = Counter(tuple(answer.tokens) for answer in answers)
    for text, share in zip(TEXTS, q_star, strict=True):
        width = 4.5 * math.sqrt(max(share * (1 - share), 2e-4) / len(answers)) + 0.1 * share
        assert counts[tuple(text)] / len(answers) == pytest.approx(share, abs=width)


def test_a_retained_text_makes_the_inverse_unbiased(model: ControlledLM) -> None:
    q_star, r = target(model, "score")
    rows = np.random.default_rng(0).choice(len(TEXTS), 900, p=q_star)
    retained = [TEXTS[row] for row in rows]
    for settings in (SMCSettings(3, 1.0, 1), SMCSettings(3, 0.0)):
        found = run(model, len(rows), settings, retained=retained)
        for one, text in zip(found, retained, strict=True):
            assert text in [list(tokens) for tokens in one.samples.tokens], "the retained text stays"
        inverse_G = np.array([math.exp(-log_mean(one.log_weight_K)) for one in found])
        assert inverse_G.mean() == pytest.approx(1 / r, abs=4 * inverse_G.std() / math.sqrt(len(rows)))
        log_z_G = np.array([log_mean(one.log_weight_K) for one in found])
        assert log_z_G.mean() > math.log(r)


def test_without_resampling_it_is_resampling_at_the_end(model: ControlledLM) -> None:
    found = run(model, 400, SMCSettings(8, 0.0))
    for one in found[:50]:
        assert one.log_weight_K == pytest.approx(WeightedTexts.of(one.samples).log_weight_K, abs=1e-6)
    other = resample(model, Likes(), [Prompt("0", "")] * 400, texts=8, max_new_tokens=T, truncated="score")
    pair = [np.mean([math.exp(log_mean(one.log_weight_K)) for one in found]), np.mean([np.exp(a.log_z) for a in other])]
    assert pair[0] == pytest.approx(pair[1], rel=0.15)


def test_a_good_twist_makes_more_texts_effective(model: ControlledLM) -> None:
    q_star, _ = target(model, "fail")
    log_p = log_p_of_all(model)
    verdicts = np.exp(np.log(np.maximum(q_star, 1e-300)) - log_p)

    def exact(batch: RolloutBatch, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> np.ndarray:
        values = []
        for row in tokens:
            inside = np.array([text[: len(row)] == list(row) for text in TEXTS])
            values.append((np.exp(log_p) * verdicts)[inside].sum() / np.exp(log_p)[inside].sum())
        return np.log(np.maximum(values, 1e-9))

    base = ControlledLM(model.scores, alpha=0.0)
    plain = run(base, 200, SMCSettings(8, 0.0), "fail")
    twisted = run(base, 200, SMCSettings(8, 0.5, 1), "fail", twist=exact)
    spread = [np.std([math.exp(log_mean(one.log_weight_K)) for one in found]) for found in (plain, twisted)]
    assert spread[1] < 0.9 * spread[0]
    effective = [np.mean([effective_number(one.log_weight_K) for one in found]) for found in (plain, twisted)]
    assert effective[1] > 1.3 * effective[0]


def test_a_prompt_does_not_depend_on_the_others(model: ControlledLM) -> None:
    together = run(model, 100, SMCSettings(4, 0.8, 1))
    prompts = [Prompt(str(place), "") for place in range(100)]
    for place in (0, 71, 99):
        (alone,) = smc(
            model,
            Likes(),
            prompts[place : place + 1],
            rough,
            SMCSettings(4, 0.8, 1),
            max_new_tokens=T,
            truncated="score",
            seed=0,
            offset=place,
        )
        assert [list(row) for row in alone.samples.tokens] == [list(row) for row in together[place].samples.tokens]
        assert alone.log_weight_K == pytest.approx(together[place].log_weight_K, abs=1e-4)
    twice = run(model, 2, SMCSettings(4, 0.8, 1), places=[1, 1, 0])
    assert twice[0].samples.tokens == together[1].samples.tokens != twice[1].samples.tokens
    assert twice[2].samples.tokens == together[0].samples.tokens


def test_prompts_without_an_accepted_text_are_no_trouble(model: ControlledLM) -> None:
    found = run(model, 20, SMCSettings(4, 1.0, 1), oracle=Never())
    assert all(np.isneginf(one.log_weight_K).all() for one in found)
    assert all(1 <= len(row) <= T for one in found for row in one.samples.tokens)
    (one,) = run(model, 1, SMCSettings(1, 1.0, 1))
    assert len(one.samples.texts) == 1


def test_settings_are_checked() -> None:
    for wrong in ({"particles": 0}, {"particles": 2, "every": 0}, {"particles": 2, "threshold": 1.5}):
        with pytest.raises(ValueError, match="at least 1"):
            SMCSettings(**wrong)


def test_systematic_resampling_copies_in_proportion() -> None:
    log_w = np.log([0.1, 0.45, 0.0 + 1e-300, 0.25, 0.2])
    share = np.exp(log_w) / np.exp(log_w).sum()
    counts = [np.bincount(ancestors(log_w, u), minlength=5) for u in (np.arange(1000) + 0.5) / 1000]
    assert np.mean(counts, 0) == pytest.approx(5 * share, abs=0.01)
    assert all((np.abs(count - 5 * share) < 1 + 1e-9).all() for count in counts)
    assert ancestors(np.array([0.0, -np.inf]), np.nextafter(1.0, 0.0)).tolist() == [0, 0]


def test_retaining_is_the_conditional_distribution() -> None:
    """Draws with a uniform slot that happens to hold the particle, against draws that are told to."""
    log_w, grid = np.log([0.1, 0.45, 0.25, 0.2]), (np.arange(20000) + 0.5) / 20000
    expected: Counter[tuple[object, ...]] = Counter()
    for u in grid:
        row = tuple(ancestors(log_w, u).tolist())
        expected.update((row, slot) for slot in range(4) if row[slot] == 1)
    total = sum(expected.values())
    found = Counter((tuple(row.tolist()), slot) for row, slot in (ancestors_retaining(log_w, 1, u) for u in grid))
    assert set(found) == set(expected)
    for key, count in expected.items():
        assert found[key] / len(grid) == pytest.approx(count / total, abs=2e-3)
    assert torch.tensor(ancestors_retaining(log_w, 1, 0.999999)[0]).eq(1).any()
