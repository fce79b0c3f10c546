"""Quasi-rejection: what is accepted, what it costs and how far it is from q*, against enumeration of every text."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from decoding_case import TEXTS, Likes, Never, T, batch_of_all, controlled, log_p_of_all, target

from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.quasi_rejection import dial, dial_point, quasi_rejection
from dinado.decoding.weighted_texts import draw_weighted
from dinado.prompt import Prompt


@pytest.fixture(scope="module")
def model() -> ControlledLM:
    return controlled()


@pytest.fixture(scope="module")
def exact(model: ControlledLM) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, w and q* of every text."""
    q_star, r = target(model)
    with torch.no_grad():
        q = np.exp(model.scores.log_q(batch_of_all(model)).double().sum(1).numpy())
    return q, r * q_star / q, q_star


def accepted(exact: tuple[np.ndarray, np.ndarray, np.ndarray], beta: float) -> tuple[np.ndarray, float, float]:
    """The distribution of what is accepted, the rate, and KL(q*||accepted)."""
    q, w, q_star = exact
    joint = q * np.minimum(1, w / beta)
    share = joint / joint.sum()
    kl = float(sum(a * math.log(a / b) for a, b in zip(q_star, share, strict=True) if a > 0))
    return share, float(joint.sum()), kl


@pytest.mark.parametrize("beta", [0.1, 0.6])
def test_what_is_accepted_has_its_distribution(
    model: ControlledLM, exact: tuple[np.ndarray, np.ndarray, np.ndarray], beta: float
) -> None:
    share, rate, _ = accepted(exact, beta)
    prompts = [Prompt(str(place), "") for place in range(1200)]
    given = {"log_beta": math.log(beta), "max_new_tokens": T, "truncated": "score"}
    found = quasi_rejection(model, Likes(), prompts, texts=4, budget=80, **given)
    answers = [answer for answer in found if answer is not None]
    assert len(answers) > 0.99 * len(prompts)
    counts = Counter(tuple(answer.tokens) for answer in answers)
    for text, each in zip(TEXTS, share, strict=True):
        width = 4.5 * math.sqrt(max(each * (1 - each), 1e-4) / len(answers))
        assert counts[tuple(text)] / len(answers) == pytest.approx(each, abs=width)
    assert np.mean([answer.num_texts for answer in answers]) == pytest.approx(1 / rate, rel=0.15)
    # How many texts are drawn together changes the cost alone.
    one_by_one = quasi_rejection(model, Likes(), prompts[:30], texts=1, budget=80, **given)
    assert [answer and answer.text for answer in one_by_one] == [answer and answer.text for answer in found[:30]]


def test_the_dial_is_estimated_from_one_set_of_samples(
    model: ControlledLM, exact: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    (drawn,) = draw_weighted(model, Likes(), [Prompt("0", "")], texts=4000, max_new_tokens=T, truncated="score", seed=2)
    _, w, q_star = exact
    rows = np.random.default_rng(0).choice(len(TEXTS), 4000, p=q_star)
    betas = (0.05, 0.2, 0.6, 3.0)
    points = dial([drawn.log_weight_K], np.log(betas).tolist(), [np.log(w[rows])], [math.log(target(model)[1])])
    for point, beta in zip(points, betas, strict=True):
        _, rate, kl = accepted(exact, beta)
        assert point.rate == pytest.approx(rate, abs=0.03) and point.kl == pytest.approx(kl, abs=0.12)
    assert points[0].rate > points[-1].rate and points[0].kl > points[-1].kl
    assert accepted(exact, w.max())[2] == pytest.approx(0, abs=1e-9)
    assert dial_point(drawn.log_weight_K, math.log(w.max())).kl == pytest.approx(0, abs=1e-9)
    # Without exact texts, the weights of the texts of q have to do: of the base's own, none is above 1.
    base = ControlledLM(model.scores, alpha=0.0)
    (drawn,) = draw_weighted(base, Likes(), [Prompt("0", "")], texts=4000, max_new_tokens=T, truncated="score", seed=2)
    r = target(model)[1]
    for beta in (0.1, 0.4):
        share = np.minimum(q_star * r, beta * np.exp(log_p_of_all(model)))
        kl = float(sum(a * math.log(a / b) for a, b in zip(q_star, share / share.sum(), strict=True) if a > 0))
        point = dial_point(drawn.log_weight_K, math.log(beta))
        assert point.rate == pytest.approx(share.sum() / beta, abs=0.03) and point.kl == pytest.approx(kl, abs=0.05)


def test_what_cannot_be_had(model: ControlledLM) -> None:
    prompts = [Prompt("0", ""), Prompt("1", "")]
    found = quasi_rejection(model, Never(), prompts, log_beta=0.0, texts=2, budget=6, max_new_tokens=T)
    assert found == [None, None]
    assert dial_point(np.array([-np.inf]), 0.0).rate == 0 and math.isnan(dial_point(np.array([-np.inf]), 0.0).kl)
    with pytest.raises(ValueError, match="no more than the budget"):
        quasi_rejection(model, Never(), prompts, log_beta=0.0, texts=3, budget=2, max_new_tokens=T)
