"""The lookahead objective, with the exact values plugged in and by hand."""

from __future__ import annotations

import pytest
import torch
from test_unbiased import batch, enumeration

from dinado.objectives.lookahead import lookahead_divergence, lookahead_targets


def test_with_exact_values_the_target_is_q_star() -> None:
    """Also where only some tokens are candidates: the others then share one value, their mean under p."""
    e = enumeration()
    other_M = torch.zeros(len(e.prefixes), dtype=torch.float64)
    everything = lookahead_targets(e.log_p_MV, e.log_r_MV.exp(), other_M, sharpness=1.0, floor=0.0)
    torch.testing.assert_close(everything[:, :-1], e.log_q_MV, rtol=0, atol=1e-5)
    some = torch.tensor([1, 3])
    rest = torch.tensor([0, 2])
    p_MV, r_MV = e.log_p_MV.exp(), e.log_r_MV.exp()
    other_M = (p_MV * r_MV)[:, rest].sum(1) / p_MV[:, rest].sum(1)
    target = lookahead_targets(e.log_p_MV[:, some], r_MV[:, some], other_M, sharpness=1.0, floor=0.0)
    torch.testing.assert_close(target[:, :-1], e.log_q_MV[:, some], rtol=0, atol=1e-5)
    torch.testing.assert_close(target[:, -1], e.log_q_MV[:, rest].logsumexp(1), rtol=0, atol=1e-5)


def test_no_gradient_at_q_star_and_one_elsewhere() -> None:
    e = enumeration()
    _, mask_NT, prefix_NT = batch(e)
    candidates = torch.tensor([1, 2])
    other_M = torch.ones(len(e.prefixes), dtype=torch.float64)
    p_MV, r_MV = e.log_p_MV.exp(), e.log_r_MV.exp()
    rest = torch.tensor([0, 3])
    other_M = (p_MV * r_MV)[:, rest].sum(1) / p_MV[:, rest].sum(1)
    target_ML = lookahead_targets(e.log_p_MV[:, candidates], r_MV[:, candidates], other_M, 1.0, 0.0)
    for shift in (0.0, 0.5):
        stream = torch.Generator().manual_seed(0)
        score_MV = (e.log_q_MV + shift * torch.randn(e.log_q_MV.shape, generator=stream)).requires_grad_()
        log_q_NTK = score_MV.log_softmax(1)[prefix_NT][..., candidates]
        kl_N = lookahead_divergence(log_q_NTK, target_ML[prefix_NT], torch.ones(prefix_NT.shape), mask_NT)
        (gradient,) = torch.autograd.grad((kl_N * e.p_N).sum(), score_MV)
        assert float(gradient.abs().max()) < 1e-6 if shift == 0 else float(gradient.abs().max()) > 1e-3


def test_targets_by_hand() -> None:
    log_p_NK = torch.tensor([[0.5, 0.25]]).log()
    target = lookahead_targets(log_p_NK, torch.tensor([[0.2, 1.0]]), torch.tensor([0.0]), sharpness=2.0, floor=0.5)
    weights = torch.tensor([[0.5 * 0.6**2, 0.25 * 1.0, 0.25 * 0.25]])
    torch.testing.assert_close(target.exp(), weights / weights.sum())


def test_a_verdict_without_hope_stays_finite() -> None:
    """Nothing succeeds: the target is p itself, not NaN."""
    log_p_NK = torch.tensor([[0.5, 0.25]]).log()
    target = lookahead_targets(log_p_NK, torch.zeros(1, 2), torch.zeros(1), sharpness=3.0, floor=0.0)
    torch.testing.assert_close(target.exp(), torch.tensor([[0.5, 0.25, 0.25]]))


def test_candidates_that_hold_everything_leave_a_finite_rest() -> None:
    log_p_NK = torch.tensor([[[0.75, 0.25]]]).log().requires_grad_()
    target = lookahead_targets(log_p_NK.detach(), torch.ones(1, 1, 2), torch.ones(1, 1), sharpness=1.0, floor=0.0)
    kl_B = lookahead_divergence(log_p_NK, target, torch.ones(1, 1), torch.ones(1, 1))
    assert float(kl_B.detach()) == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(kl_B.sum(), log_p_NK)
    assert torch.isfinite(gradient).all()


def test_divergence_by_hand() -> None:
    """Weighted by the value of the prefix, nothing on padding."""
    log_q = torch.tensor([[[0.5], [0.25]], [[0.5], [0.9]]]).log()
    log_target = torch.tensor([[[0.25, 0.75], [0.25, 0.75]], [[0.5, 0.5], [0.1, 0.9]]]).log()
    weight, mask = torch.tensor([[2.0, 1.0], [1.0, 5.0]]), torch.tensor([[1, 1], [1, 0]])
    kl = 0.25 * torch.log(torch.tensor(0.5)) + 0.75 * torch.log(torch.tensor(1.5))
    found = lookahead_divergence(log_q, log_target, weight, mask)
    torch.testing.assert_close(found, torch.tensor([2 * float(kl), 0.0]))
