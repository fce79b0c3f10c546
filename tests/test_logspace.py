"""Bernoulli quantities of a log-probability against float64, their gradients, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinado.objectives.logspace import LOG_CEILING, LOG_FLOOR, bernoulli_ce, bernoulli_kl, log1mexp, poisson_ce

INTERIOR = torch.cat([torch.logspace(-12, -2.5, 60), torch.linspace(0.01, 0.985, 80)])
"""Values of R below the ceiling of 0.99."""


def gradient(function, *values: float) -> list[float]:
    arguments = [torch.tensor(value, requires_grad=True) for value in values]
    return [float(g) for g in torch.autograd.grad(function(*arguments), arguments)]


def test_log1mexp_is_accurate_from_end_to_end() -> None:
    log_a = -torch.logspace(-30, 1.9, 400)
    x = log_a.double().numpy()
    # float64 has digits to spare at both ends.
    exact = np.where(x > -1, np.log(-np.expm1(x)), np.log1p(-np.exp(np.minimum(x, -1))))
    np.testing.assert_allclose(log1mexp(log_a).numpy(), exact, rtol=2e-6, atol=0)


def test_log1mexp_does_what_the_naive_formula_cannot() -> None:
    log_a = torch.tensor([-1e-9, -40.0])
    naive = torch.log(1 - log_a.exp())
    assert naive.tolist() == [-math.inf, 0.0]
    assert log1mexp(log_a).tolist() == pytest.approx([math.log(1e-9), -math.exp(-40.0)], rel=1e-6)
    assert float(log1mexp(torch.tensor(0.0))) == -math.inf


@pytest.mark.parametrize("value", [-1e-6, -0.1, -math.log(2.0), -0.7, -5.0, -60.0])
def test_log1mexp_gradient(value: float) -> None:
    assert gradient(log1mexp, value) == pytest.approx([-1.0 / math.expm1(-value)], rel=1e-5)


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_cross_entropy_is_the_naive_formula_in_the_interior(target: float) -> None:
    r = INTERIOR.double()
    log_r = r.log().float()
    naive = -target * log_r.double() - (1 - target) * torch.log1p(-log_r.double().exp())
    torch.testing.assert_close(bernoulli_ce(log_r, torch.tensor(target)).double(), naive, rtol=3e-6, atol=1e-12)


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_poisson_is_the_generalised_divergence_with_a_bounded_slope(target: float) -> None:
    r = torch.cat([INTERIOR, torch.linspace(1.0, 1.999, 20)]).double()
    naive = (target * (target / r).log() if target else 0.0) - target + r
    torch.testing.assert_close(
        poisson_ce(r.log(), torch.tensor(target, dtype=torch.float64)), naive, rtol=1e-9, atol=1e-12
    )
    for value in (1e-4, 0.5, 1.0, 1.9, 2.1, 50.0):
        slope, _ = gradient(poisson_ce, math.log(value), target)
        assert slope == pytest.approx(min(value, 2.0) - target, abs=1e-6)
    least = min(float(poisson_ce(torch.tensor(math.log(x)), torch.tensor(target))) for x in (1e-3, 0.2, 0.3, 0.4, 1.0))
    assert least == pytest.approx(1e-3 if target == 0 else 0.0, abs=1e-6)


def test_kl_is_the_naive_formula_in_the_interior() -> None:
    r = INTERIOR[INTERIOR > 1e-6]
    log_a, log_b = torch.meshgrid(r.log(), r.log(), indexing="ij")
    a, b = log_a.double().exp(), log_b.double().exp()
    naive = a * (a / b).log() + (1 - a) * (torch.log1p(-a) - torch.log1p(-b))
    torch.testing.assert_close(bernoulli_kl(log_a, log_b).double(), naive, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("log_r", [-math.inf, -1e4, LOG_FLOOR, -1e-12, 0.0, 0.5, 30.0])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_values_and_gradients_are_finite_at_both_ends(log_r: float, target: float) -> None:
    def cross_entropy(x):
        return bernoulli_ce(x, torch.tensor(target))

    assert math.isfinite(float(cross_entropy(torch.tensor(log_r))))
    assert all(map(math.isfinite, gradient(cross_entropy, log_r)))
    for other in (-80.0, -1.0, 0.0, 2.0):
        for pair in ((log_r, other), (other, log_r)):
            assert math.isfinite(float(bernoulli_kl(*map(torch.tensor, pair))))
            assert all(map(math.isfinite, gradient(bernoulli_kl, *pair)))


def test_a_negative_above_the_ceiling_is_pulled_down_along_a_straight_line() -> None:
    slope = 0.99 / 0.01  # d/dx of -log(1 - exp x) at exp x = 0.99
    for log_r in (LOG_CEILING + 1e-3, 0.0, 1.0, 20.0):
        assert gradient(lambda x: bernoulli_ce(x, torch.tensor(0.0)), log_r) == pytest.approx([slope], rel=1e-4)
        expected = -math.log(0.01) + slope * (log_r - math.log(0.99))
        assert float(bernoulli_ce(torch.tensor(log_r), torch.tensor(0.0))) == pytest.approx(expected, rel=1e-4)


def test_a_positive_beyond_certainty_neither_costs_nor_pays() -> None:
    for log_r in (0.1, 3.0):
        assert float(bernoulli_ce(torch.tensor(log_r), torch.tensor(1.0))) == 0.0
        assert gradient(lambda x: bernoulli_ce(x, torch.tensor(1.0)), log_r) == [0.0]


def test_certain_prefixes_are_consistent_with_certain_expectations() -> None:
    """1 against 1 costs nothing, on either side of 1; nearly certain values cost what they differ by, or nothing."""
    for log_r in (0.0, -1e-3, 0.5):
        assert float(bernoulli_kl(torch.tensor(log_r), torch.tensor(log_r))) == pytest.approx(0.0, abs=1e-6)
    assert float(bernoulli_kl(torch.tensor(-1e-3), torch.tensor(0.0))) == pytest.approx(0.0, abs=1e-3)
    assert float(bernoulli_kl(torch.tensor(0.0), torch.tensor(-5e-3))) == pytest.approx(5e-3, abs=1e-4)


def test_a_value_near_certainty_has_a_gradient() -> None:
    log_a, log_b = math.log(0.999), math.log(0.9)
    exact = 0.999 * math.log(0.999 / 0.9) + 0.001 * math.log(0.001 / 0.1)
    assert float(bernoulli_kl(torch.tensor(log_a), torch.tensor(log_b))) == pytest.approx(exact, abs=2e-3)
    for above in (log_a, 0.0, 0.3):
        of_a, of_b = gradient(bernoulli_kl, above, log_b)
        assert of_a > 0.5 and of_b < -0.5, "the two are pulled together"


PROBABILITIES = st.floats(1e-6, 0.989)


@given(PROBABILITIES, PROBABILITIES)
def test_kl_is_positive_and_zero_only_where_equal(a: float, b: float) -> None:
    log_a, log_b = (torch.tensor(math.log(x), dtype=torch.float64) for x in (a, b))
    kl = float(bernoulli_kl(log_a, log_b))
    assert float(bernoulli_kl(log_a, log_a)) == pytest.approx(0.0, abs=1e-14)
    # Pinsker: two probabilities apart by d are at least 2 d^2 nats apart.
    assert kl >= 2 * (a - b) ** 2 - 1e-14


@given(PROBABILITIES, st.floats(0.0, 1.0))
def test_cross_entropy_is_least_at_the_truth(truth: float, other: float) -> None:
    """Proper scoring, up to the ceiling: E_{C ~ truth} CE(R, C) has its minimum at R = truth."""

    def expected(r: float) -> float:
        log_r = torch.tensor(math.log(max(r, 1e-30)), dtype=torch.float64)
        return float(bernoulli_ce(log_r, torch.tensor(truth, dtype=torch.float64)))

    assert expected(truth) <= expected(other) + 1e-12


def test_a_truth_above_the_ceiling_is_taken_for_certain() -> None:
    """The price of a finite pull: R in (0.99, 1) is learned as 1, an error of at most one per cent."""
    log_r = torch.linspace(-0.02, 0.02, 401, dtype=torch.float64)
    loss = bernoulli_ce(log_r, torch.tensor(0.995, dtype=torch.float64))
    assert float(log_r[loss.argmin()]) == pytest.approx(0.0, abs=1e-4)
