"""Vocabulary statistics against the formulas over the whole vocabulary, and what they keep in memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from vocabulary_case import LENGTHS, LINKS, B, Case, D, E, T, V

from dinado.objectives import reduction
from dinado.objectives.reduction import Head, link_scores
from dinado.objectives.vocabulary import VocabularyStatistics, token_log_probs


def weighted_sum(statistics: VocabularyStatistics) -> Tensor:
    """A loss in which every field and position counts differently."""
    total = torch.zeros((), dtype=torch.float64)
    for index, field in enumerate(f for f in statistics if f is not None and f.requires_grad):
        total = total + (field.double() * torch.linspace(1, 2 + index, B * T).view(B, T)).sum()
    return total


@pytest.mark.parametrize("chunk", [reduction.CHUNK_ELEMENTS, 2 * V, 1])
@pytest.mark.parametrize("support", [0, 3, V, 99])
@pytest.mark.parametrize("link", LINKS)
def test_statistics_are_the_full_vocabulary_formulas(
    link: str, support: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduction, "CHUNK_ELEMENTS", chunk)
    case, plain_case = Case(), Case()
    found, plain = case.statistics(link, support=support), plain_case.plain(link, min(support, V))
    for name, ours, exact in zip(VocabularyStatistics._fields[:4], found[:4], plain[:4], strict=True):
        assert ours.dtype == torch.float32, name
        assert torch.allclose(ours.double(), exact, rtol=1e-4, atol=2e-5), name
        assert not ours[case.mask_BT == 0].any(), name
    ours = torch.autograd.grad(weighted_sum(found), case.trained)
    # A policy's normaliser is the constant 1; the plain formula has it with a gradient of rounding size.
    plain = _without_log_mean(plain) if link == "log_ratio" else plain
    exact = torch.autograd.grad(weighted_sum(plain), plain_case.trained)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def _without_log_mean(statistics: VocabularyStatistics) -> VocabularyStatistics:
    return statistics._replace(log_mean=statistics.log_mean.detach(), log_p=statistics.log_p.detach())


@pytest.mark.parametrize("link", LINKS)
def test_without_the_maximum_nothing_else_changes(link: str) -> None:
    with_it, without = Case().statistics(link), Case().statistics(link, maximum=False)
    assert without.maximum is None
    for a, b in zip(with_it[:3], without[:3], strict=True):
        assert torch.equal(a, b)


def test_support_matters() -> None:
    """The maximum over likely tokens is smaller somewhere, or the parameter would be idle."""
    case = Case()
    assert (case.statistics("identity", support=3).maximum < case.statistics("identity").maximum).any()


def test_a_head_without_bias_and_scale() -> None:
    weight_VD = torch.randn(V, D)
    states = torch.randn(2, 3, D)
    torch.testing.assert_close(Head(weight_VD).logits(states), states @ weight_VD.T)


@pytest.mark.parametrize("link", LINKS)
def test_log_q_is_the_normalised_product(link: str) -> None:
    case = Case()
    log_q_BTV = (case.log_p_BTV() + case.score_BTV(link)).log_softmax(-1)
    expected = log_q_BTV.gather(-1, case.tokens_BT[..., None])[..., 0] * case.mask_BT
    torch.testing.assert_close(case.statistics(link).log_q.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk", [10**6, V])
def test_token_log_probs(chunk: int, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "CHUNK_ELEMENTS", chunk)
    case = Case()
    head, trained = case.own_head, case.trained
    if frozen:
        head, trained = head._replace(weight_VD=head.weight_VD.detach(), bias_V=head.bias_V.detach()), trained[:1]
    # Several tokens a position, one of them twice.
    tokens_BTK = torch.stack([case.tokens_BT, (case.tokens_BT + 1) % V, case.tokens_BT], -1)
    found = token_log_probs(case.own_BTE, head, tokens_BTK, case.mask_BT)
    u = 1.3 * (case.own_BTE.double() @ case.own_weight.T.double() + case.own_bias.double())
    exact = u.log_softmax(-1).gather(-1, tokens_BTK) * case.mask_BT[..., None]
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    weight_BTK = torch.linspace(-1, 2, B * T * 3).view(B, T, 3)
    ours = torch.autograd.grad((found * weight_BTK).sum(), trained)
    for a, b in zip(ours, torch.autograd.grad((exact * weight_BTK).sum(), trained), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(token_log_probs(case.own_BTE, head, tokens_BTK, case.mask_BT), found)


@pytest.mark.parametrize("maximum", [False, True])
@pytest.mark.parametrize("link", LINKS)
def test_log_q_of_candidates(link: str, maximum: bool) -> None:
    case = Case()
    candidate_BTK = torch.stack([case.tokens_BT, (case.tokens_BT + 2) % V], -1)
    found = case.statistics(link, maximum=maximum, candidate_BTK=candidate_BTK)
    exact = (case.log_p_BTV() + case.score_BTV(link)).log_softmax(-1).gather(-1, candidate_BTK)
    exact = exact * case.mask_BT[..., None]
    assert found.candidate_log_q is not None
    torch.testing.assert_close(found.candidate_log_q.double(), exact, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found.candidate_log_q[..., 0], found.log_q)
    ours = torch.autograd.grad(found.candidate_log_q[..., 1].square().sum(), case.trained)
    for a, b in zip(ours, torch.autograd.grad(exact[..., 1].square().sum(), case.trained), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert (found.maximum is None) is (not maximum)
    assert case.statistics(link).candidate_log_q is None


def test_the_padding_may_hold_anything() -> None:
    case, other = Case(), Case()
    padding = other.mask_BT == 0
    other.base_BTD[padding] = math.nan
    with torch.no_grad():
        other.own_BTE[padding] = math.inf
    found = other.statistics("logsigmoid")
    for a, b in zip(case.statistics("logsigmoid")[:4], found[:4], strict=True):
        assert torch.equal(a, b)
    for gradient in torch.autograd.grad(weighted_sum(found), other.trained):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("chunk", [reduction.CHUNK_ELEMENTS, 2 * V])
@pytest.mark.parametrize("link", LINKS)
def test_nothing_over_the_vocabulary_is_kept(link: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that autograd saves between the passes are the states and tokens that come in."""
    monkeypatch.setattr(reduction, "CHUNK_ELEMENTS", chunk)

    def saved(compute: Callable[[], object]) -> int:
        tensors: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            tensors[tensor.data_ptr()] = tensor  # kept alive, so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = compute()
        assert kept is not None
        heads = {head.weight_VD.data_ptr() for head in (case.base_head, case.own_head)}
        return sum(tensor.numel() for address, tensor in tensors.items() if address not in heads)

    case = Case()
    inputs = sum(LENGTHS) * (D + E + 1) + B * T
    assert saved(lambda: case.statistics(link)) <= inputs
    assert saved(lambda: case.plain(link)) >= inputs + B * T * V, "the measure sees what a plain computation keeps"


def test_extreme_scores_stay_finite() -> None:
    score_NV = link_scores("logsigmoid", torch.tensor([[-200.0, 200.0, 0.0]]))
    assert score_NV[0].tolist() == pytest.approx([-200.0, 0.0, math.log(0.5)], abs=1e-6)
