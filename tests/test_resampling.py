"""Resampling of a controlled model's texts, against enumeration of every text and every pair of texts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers import random_network

from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_markov
from dinado.batch import RolloutBatch
from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.answers import Answer
from dinado.decoding.bounds import kl_bound, log_z_above, log_z_below
from dinado.decoding.log_weights import chosen, effective_number, log_mean
from dinado.decoding.resampling import resample
from dinado.decoding.weighted_texts import draw_weighted
from dinado.oracles import Oracle
from dinado.prompt import Prompt

V, T = 4, 3
TEXTS = [[*p, 0] for i in range(T) for p in itertools.product(range(1, V), repeat=i)]
TEXTS += [list(p) for p in itertools.product(range(1, V), repeat=T)]


class Likes(Oracle):
    """Accepts texts with a 2, and those with a 3 by half."""

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [1.0 if "2" in text else 0.5 if "3" in text else 0.0 for text in texts]


class Never(Oracle):
    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [0.0] * len(texts)


@pytest.fixture(scope="module")
def model() -> ControlledLM:
    base = BaseLM(*build_markov(V, seed=3))
    return ControlledLM(random_network(base))


@pytest.fixture(scope="module")
def exact(model: ControlledLM) -> tuple[np.ndarray, np.ndarray, float]:
    """q and the log weight of every text, and log R."""
    base = model.base
    ids, mask = base.encode_prompts([Prompt("0", "")])
    batch = RolloutBatch.unjudged(ids, mask, [0] * len(TEXTS), TEXTS)
    log_p = base.log_probs(batch).double().sum(1).numpy()
    with torch.no_grad():
        log_q = model.scores.log_q(batch).double().sum(1).numpy()
    assert np.exp(log_q).sum() == pytest.approx(1, abs=1e-5)
    verdicts = Likes().score([], [base.decode(text) for text in TEXTS])
    with np.errstate(divide="ignore"):
        log_w = log_p - log_q + np.log(verdicts)
    return np.exp(log_q), log_w, math.log(float((np.exp(log_p) * verdicts).sum()))


def answers(model: ControlledLM, count: int, oracle: Oracle | None = None, **settings: int) -> list[Answer]:
    prompts = [Prompt(str(place), "") for place in range(count)]
    given = {"texts": 2, "max_new_tokens": T} | settings
    return resample(model, oracle or Likes(), prompts, truncated="score", **given)  # type: ignore[arg-type]


def returned(exact: tuple[np.ndarray, np.ndarray, float]) -> tuple[np.ndarray, float, float, float]:
    """The distribution of what is returned of two texts given that one is accepted, P(S), and E log Z both ways."""
    q, log_w, log_r = exact
    w, share = np.exp(log_w), np.zeros(len(q))
    success = below = 0.0
    for a, b in itertools.product(range(len(q)), repeat=2):
        if (total := w[a] + w[b]) > 0:
            success += q[a] * q[b]
            below += q[a] * q[b] * math.log(total / 2)
            share[a] += q[a] * q[b] * w[a] / total
            share[b] += q[a] * q[b] * w[b] / total
    target = q * w / math.exp(log_r)
    above = sum(
        target[a] * q[b] * math.log((w[a] + w[b]) / 2)
        for a, b in itertools.product(range(len(q)), repeat=2)
        if target[a] > 0
    )
    return share / success, success, below / success, above


def test_what_is_returned_has_the_distribution_of_two_weighted_texts(
    model: ControlledLM, exact: tuple[np.ndarray, np.ndarray, float]
) -> None:
    expected, success, _, _ = returned(exact)
    found = [answer for answer in answers(model, 3000) if answer.accepted]
    assert len(found) / 3000 == pytest.approx(success, abs=4 * math.sqrt(success * (1 - success) / 3000))
    counts = Counter(tuple(answer.tokens) for answer in found)
    for text, share in zip(TEXTS, expected, strict=True):
        width = 4.5 * math.sqrt(max(share * (1 - share), 1e-4) / len(found))
        assert counts[tuple(text)] / len(found) == pytest.approx(share, abs=width)


def test_the_bounds_hold(exact: tuple[np.ndarray, np.ndarray, float]) -> None:
    q, log_w, log_r = exact
    share, success, below, above = returned(exact)
    target = q * np.exp(log_w) / math.exp(log_r)
    kl = float(sum(s * math.log(s / t) for s, t in zip(share, target, strict=True) if s > 0))
    bound = log_r - math.log(success) - below
    assert 0 < kl <= bound
    alone = float(sum(t * math.log(t / qy) for t, qy in zip(target, q, strict=True) if t > 0))
    assert kl < alone and above >= log_r


def test_bounds_are_estimated(model: ControlledLM, exact: tuple[np.ndarray, np.ndarray, float]) -> None:
    q, log_w, log_r = exact
    _, success, below, above = returned(exact)
    found = draw_weighted(
        model, Likes(), [Prompt("0", "")] * 2500, texts=2, max_new_tokens=T, truncated="score", seed=1
    )
    log_z_G = np.array([log_mean(one.log_weight_K) for one in found])
    assert kl_bound(log_r, log_z_G) == pytest.approx(log_r - math.log(success) - below, abs=0.07)
    weights = np.stack([one.log_weight_K for one in found])
    target = q * np.exp(log_w) / math.exp(log_r)
    exact_A = log_w[np.random.default_rng(0).choice(len(q), 1500, p=target / target.sum())]
    assert log_z_above(exact_A, weights[:8]) == pytest.approx(above, abs=0.1)
    # A group without an accepted text makes the lower bound useless, and the bound on KL conditional on success.
    assert log_z_below(log_z_G) == -math.inf and math.isnan(kl_bound(log_r, np.array([-math.inf])))


def test_more_texts_are_drawn_until_one_is_accepted(model: ControlledLM) -> None:
    once, more = answers(model, 200), answers(model, 200, budget=20)
    assert any(not answer.accepted for answer in once) and all(answer.accepted for answer in more)
    for first, last in zip(once, more, strict=True):
        assert (first == last) == first.accepted, "what was accepted at once stays"
        assert last.num_texts == 2 or not first.accepted
        assert last.num_tokens >= first.num_tokens
    nothing = answers(model, 3, Never(), budget=6)
    assert [(answer.accepted, answer.num_texts, answer.log_z) for answer in nothing] == [(False, 6, -math.inf)] * 3


def test_a_budget_below_the_texts_is_refused(model: ControlledLM) -> None:
    with pytest.raises(ValueError, match="no more than the budget"):
        answers(model, 1, texts=4, budget=3)


def test_choices_and_effective_numbers() -> None:
    log_w = np.log([1.0, 2.0, 1.0])
    assert [chosen(log_w, u) for u in (0.0, 0.24, 0.26, 0.74, 0.76, 0.999)] == [0, 0, 1, 1, 2, 2]
    assert effective_number(log_w) == pytest.approx(16 / 6) and log_mean(log_w) == pytest.approx(math.log(4 / 3))
    nothing = np.full(4, -np.inf)
    assert effective_number(nothing) == 0 and chosen(nothing, 0.6) == 2
    # Weights far from 1 overflow nowhere.
    assert chosen(log_w + 900, 0.5) == 1 and effective_number(log_w - 900) == pytest.approx(16 / 6)
