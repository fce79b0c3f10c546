"""Vocabulary statistics, values, masks and losses against plain formulas over the whole vocabulary.

Axes: B rollouts, T response tokens, V vocabulary, D and E widths.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers import objective
from torch import Tensor
from torch.nn.functional import logsigmoid
from vocabulary_case import LINKS, B, Case, T, V

from dinado.objectives.values import TokenValues, hard_values, log_beta, nado_values, soft_values
from dinado.objectives.vocabulary import (
    VocabularyStatistics,
)
from lightning_modules.value_loss import value_loss

# Values


@pytest.fixture
def full() -> dict[str, Tensor]:
    """One case over the whole vocabulary: log p, scores, normaliser."""
    case = Case(sharpness=1.0)
    return {"log_p": case.log_p_BTV(), "score": case.score_BTV("identity").detach()}


def all_tokens(value, link: str = "identity", **settings: object) -> Tensor:
    """log R_i(v) for every v: the values of batches in which v is the sampled token of every row, ``[B, T, V]``."""
    columns = []
    for token in range(V):
        case = Case(sharpness=1.0)
        case.tokens_BT = torch.full((B, T), token)
        case.mask_BT = torch.ones(B, T, dtype=torch.long)
        columns.append(value(case.statistics(link, **settings)).log_r_BT.detach().double())
    return torch.stack(columns, -1)


NORM_LOGIT = torch.linspace(-2, 1.5, B * T).view(B, T)


def log_v(value, link: str = "identity", **settings: object) -> Tensor:
    case = Case(sharpness=1.0)
    case.mask_BT = torch.ones(B, T, dtype=torch.long)
    return value(case.statistics(link, **settings)).log_v_BT.detach().double()


@pytest.mark.parametrize("link", LINKS)
def test_soft_linf_has_beta_as_its_largest_value(link: str) -> None:
    def value(s: VocabularyStatistics) -> TokenValues:
        return soft_values(s, log_beta(NORM_LOGIT, None), "linf")

    log_r_BTV = all_tokens(value, link)
    torch.testing.assert_close(log_r_BTV.exp().max(-1).values, NORM_LOGIT.double().sigmoid(), rtol=1e-4, atol=1e-6)
    expectation = (Case(sharpness=1.0).log_p_BTV().exp() * log_r_BTV.exp()).sum(-1)
    torch.testing.assert_close(log_v(value, link).exp(), expectation, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("link", LINKS)
def test_soft_mean_has_beta_as_its_expectation(link: str) -> None:
    def value(s: VocabularyStatistics) -> TokenValues:
        return soft_values(s, log_beta(NORM_LOGIT, None), "mean")

    expectation = (Case(sharpness=1.0).log_p_BTV().exp() * all_tokens(value, link, maximum=False).exp()).sum(-1)
    torch.testing.assert_close(expectation, NORM_LOGIT.double().sigmoid(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(log_v(value, link, maximum=False).exp(), expectation, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "mean"])
def test_only_the_ratio_decodes(norm: str, full: dict[str, Tensor]) -> None:
    """softmax(log p + log R) is the same whatever beta is, and is softmax(log p + s)."""
    for shift in (-3.0, 0.0, 2.0):
        log_r_BTV = all_tokens(lambda s, shift=shift: soft_values(s, log_beta(NORM_LOGIT + shift, None), norm))
        decoded = (full["log_p"] + log_r_BTV).softmax(-1)
        torch.testing.assert_close(decoded, (full["log_p"] + full["score"]).softmax(-1), rtol=1e-4, atol=1e-6)


def test_linf_without_a_maximum_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="maximum"):
        soft_values(Case().statistics("identity", maximum=False), NORM_LOGIT, "linf")


def test_nado_is_the_sigmoid_and_its_expectation(full: dict[str, Tensor]) -> None:
    log_r_BTV = all_tokens(nado_values, "logsigmoid")
    torch.testing.assert_close(log_r_BTV, logsigmoid(full["score"]), rtol=1e-4, atol=1e-5)
    expectation = (full["log_p"].exp() * log_r_BTV.exp()).sum(-1)
    torch.testing.assert_close(log_v(nado_values, "logsigmoid").exp(), expectation, rtol=1e-4, atol=1e-6)


def test_hard_telescopes_and_is_consistent_by_construction(full: dict[str, Tensor]) -> None:
    log_root_B = torch.tensor([-2.0, -0.3, -5.0])

    def values(row: int | None = None, token: int | None = None) -> TokenValues:
        """With one row's token replaced."""
        case = Case(sharpness=1.0)
        case.mask_BT = torch.ones(B, T, dtype=torch.long)
        if row is not None:
            case.tokens_BT[:, row] = token
        return TokenValues(*(v.detach() for v in hard_values(case.statistics("identity"), log_root_B)))

    found, tokens_BT = values(), Case().tokens_BT
    log_q_BTV = (full["log_p"] + full["score"]).log_softmax(-1)
    ratio_BT = (log_q_BTV - full["log_p"]).gather(-1, tokens_BT[..., None])[..., 0]
    telescoped = log_root_B.double()[:, None] + ratio_BT.cumsum(1)
    torch.testing.assert_close(found.log_r_BT.double(), telescoped, rtol=1e-4, atol=1e-4)
    before = torch.cat([log_root_B[:, None], found.log_r_BT[:, :-1]], 1)
    torch.testing.assert_close(found.log_v_BT, before, rtol=1e-4, atol=1e-5)
    for row in range(T):
        # E_p of the value after the token is the value before it.
        log_r_BV = torch.stack([values(row, token).log_r_BT[:, row] for token in range(V)], 1).double()
        expectation_B = (full["log_p"][:, row] + log_r_BV).logsumexp(1)
        torch.testing.assert_close(expectation_B, before[:, row].double(), rtol=1e-4, atol=1e-4)
    loss = value_loss(found, torch.tensor([1.0, 0.0, 0.5]), torch.ones(B, T), None, objective())
    assert loss.consistency_B.tolist() == pytest.approx([0.0] * 3, abs=1e-5)


def test_beta_is_relative_to_a_known_root() -> None:
    root_B = torch.tensor([0.1, 0.5, 0.9])
    at_start = log_beta(torch.zeros(B, T), root_B).exp()
    torch.testing.assert_close(at_start, root_B[:, None].expand(B, T))
    odds = log_beta(torch.full((B, T), math.log(3.0)), root_B).exp()
    torch.testing.assert_close(odds / (1 - odds), (3 * root_B / (1 - root_B))[:, None].expand(B, T))
    torch.testing.assert_close(log_beta(NORM_LOGIT, None).exp(), NORM_LOGIT.sigmoid())


# Masks and losses, by hand. Three rollouts of up to four tokens: finished, cut off, one token long.

HAND_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
FINISHED = torch.tensor([True, False, True])
R = [[0.30, 0.40, 0.60, 0.90], [0.20, 0.25, 0.10, 0.50], [0.70, 0.50, 0.50, 0.50]]
EXPECTED = [[0.35, 0.28, 0.45, 0.55], [0.35, 0.30, 0.20, 0.50], [0.35, 0.50, 0.50, 0.50]]
SCORES = [1.0, 0.0, 0.4]


def hand_values() -> TokenValues:
    return TokenValues(torch.tensor(R).log(), torch.tensor(EXPECTED).log())


def ce(r: float, c: float) -> float:
    return -c * math.log(r) - (1 - c) * math.log(1 - r)


def kl(a: float, b: float) -> float:
    return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))


HAND_ROWS = {
    "correct": [[0, 1, 2, 3], [0, 1, 2], [0]],
    # The row of the first token is never trained; nor is that of the end token, which the third rollout is alone.
    "official": [[1, 2], [1, 2], []],
}
HAND_LINKS = {  # pairs (row whose expectation, row whose value)
    "correct": [[(1, 0), (2, 1), (3, 2)], [(1, 0), (2, 1)], []],
    "official": [[(2, 1)], [(2, 1)], []],
}


@pytest.mark.parametrize("direction", ["expected_first", "predicted_first"])
@pytest.mark.parametrize("masks", ["correct", "official"])
def test_terms_by_hand(masks: str, direction: str) -> None:
    weights = objective(token_ce=0.7, terminal_ce=0.2, regulariser=0.3, direction=direction, masks=masks)
    loss = value_loss(hand_values(), torch.tensor(SCORES), HAND_MASK, FINISHED, weights)
    for b in range(3):
        rows, links = HAND_ROWS[masks][b], HAND_LINKS[masks][b]
        token = sum(ce(R[b][i], SCORES[b]) for i in rows)
        terminal = ce(R[b][rows[-1]], SCORES[b]) if rows else 0.0
        pairs = [(EXPECTED[b][i], R[b][j]) for i, j in links]
        consistency = sum(kl(e, r) if direction == "expected_first" else kl(r, e) for e, r in pairs)
        assert float(loss.token_ce_B[b]) == pytest.approx(token, abs=1e-5)
        assert float(loss.terminal_ce_B[b]) == pytest.approx(terminal, abs=1e-5)
        assert float(loss.consistency_B[b]) == pytest.approx(consistency, abs=1e-5)
        assert float(loss.num_links_B[b]) == len(links)
        assert float(loss.total_B[b]) == pytest.approx(0.7 * token + 0.2 * terminal + 0.3 * consistency, abs=1e-5)


def test_other_terms_by_hand() -> None:
    nothing = objective(token_ce=0.0, regulariser=0.0, overflow=0.0)

    def total(**changed: object) -> list[float]:
        weights = objective(nothing, **changed)  # type: ignore[arg-type]
        return value_loss(hand_values(), torch.tensor(SCORES), HAND_MASK, FINISHED, weights).total_B.tolist()

    rows, links = HAND_ROWS["correct"], HAND_LINKS["correct"]
    value = [2 * sum(ce(EXPECTED[b][i], SCORES[b]) for i in rows[b]) for b in range(3)]
    assert total(value_ce=2.0) == pytest.approx(value, abs=1e-5)
    pairs = [[(EXPECTED[b][i], R[b][j]) for i, j in links[b]] for b in range(3)]
    poisson = [3 * sum(e * math.log(e / r) - e + r for e, r in pair) for pair in pairs]
    assert total(regulariser=3.0, consistency="poisson") == pytest.approx(poisson, abs=1e-5)
    weights = objective(nothing, regulariser=3.0, consistency="poisson")
    reported = value_loss(hand_values(), torch.tensor(SCORES), HAND_MASK, FINISHED, weights).consistency_B
    assert reported.tolist() == pytest.approx([sum(kl(e, r) for e, r in pair) for pair in pairs], abs=1e-5)


def test_official_masks_need_to_know_what_is_finished() -> None:
    with pytest.raises(ValueError, match="finished"):
        value_loss(hand_values(), torch.tensor(SCORES), HAND_MASK, None, objective(masks="official"))


@pytest.mark.parametrize("masks", ["correct", "official"])
def test_gradients_reach_exactly_the_rows_that_count(masks: str) -> None:
    log_r = torch.tensor(R).log().requires_grad_()
    log_v = torch.tensor(EXPECTED).log().requires_grad_()
    weights = objective(terminal_ce=0.5, masks=masks)
    value_loss(TokenValues(log_r, log_v), torch.tensor(SCORES), HAND_MASK, FINISHED, weights).total_B.sum().backward()
    for b in range(3):
        assert log_r.grad[b].nonzero()[:, 0].tolist() == HAND_ROWS[masks][b]
        assert log_v.grad[b].nonzero()[:, 0].tolist() == [i for i, _ in HAND_LINKS[masks][b]]


@pytest.mark.parametrize("direction", ["expected_first", "predicted_first"])
@pytest.mark.parametrize("detach", ["none", "expected", "predicted"])
def test_detach_stops_one_side_only(detach: str, direction: str) -> None:
    log_r = torch.tensor(R).log().requires_grad_()
    log_v = torch.tensor(EXPECTED).log().requires_grad_()
    weights = objective(token_ce=0.0, regulariser=1.0, overflow=0.0, direction=direction, detach=detach)
    value_loss(TokenValues(log_r, log_v), torch.tensor(SCORES), HAND_MASK, FINISHED, weights).total_B.sum().backward()
    assert bool(log_r.grad.any()) == (detach != "predicted")
    assert (log_v.grad is not None and bool(log_v.grad.any())) == (detach != "expected")


def test_values_that_are_held_fixed_leave_the_regulariser_to_the_ratios() -> None:
    statistics = Case().statistics("identity")
    score = statistics.score.detach().requires_grad_()
    log_beta_BT = torch.full((B, T), -0.7, requires_grad=True)
    values = soft_values(statistics._replace(score=score), log_beta_BT, "mean")
    weights = objective(token_ce=0.0, regulariser=1.0, overflow=0.0)
    losses = {}
    for detach in ("none", "values"):
        changed = objective(weights, detach=detach)  # type: ignore[arg-type]
        losses[detach] = value_loss(values, torch.ones(B), torch.ones(B, T), None, changed).total_B
    torch.testing.assert_close(losses["none"], losses["values"])
    of_beta, of_score = torch.autograd.grad(losses["values"].sum(), [log_beta_BT, score], allow_unused=True)
    assert of_beta is None or not of_beta.any()
    assert of_score.any()


def test_overflow_is_the_square_of_what_exceeds_certainty() -> None:
    log_r = torch.tensor([[0.3, -1.0, 0.2, 9.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    values = TokenValues(log_r, torch.zeros(1, 4))
    weights = objective(token_ce=0.0, regulariser=0.0, overflow=2.0)
    with_it = value_loss(values, torch.ones(1), mask, None, weights).total_B
    assert with_it.tolist() == pytest.approx([2 * (0.09 + 0.04)])
    assert value_loss(values, torch.ones(1), mask, None, objective(weights, overflow=0.0)).total_B.tolist() == [0.0]


def test_the_path_is_the_loss_of_hard_with_the_same_ratios() -> None:
    statistics = Case().statistics("identity")
    score_B, log_root_B = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.3, 0.5, 0.8]).log()
    mask_BT = torch.tensor([[1] * T, [1] * T, [1] * (T - 1) + [0]])
    values = soft_values(statistics, torch.full((B, T), -0.7), "mean")
    weights = objective(token_ce=0.3, terminal_ce=0.9, regulariser=0.0, overflow=0.4)

    def total(values: TokenValues, log_root_B: torch.Tensor | None = None, **changed: float) -> torch.Tensor:
        return value_loss(values, score_B, mask_BT, None, objective(weights, **changed), log_root_B).total_B

    for log_root, given in ((log_root_B, log_root_B), (torch.full((B,), -0.7), None)):
        added = total(values, given, path=2.0) - total(values, given)
        torch.testing.assert_close(added, 2.0 * total(hard_values(statistics, log_root)))


def test_a_norm_that_explains_everything_leaves_the_ratios_to_the_path() -> None:
    """What the path is for: R is right at the end, q is still p, and only the path has a gradient for q."""
    score = torch.zeros(2, 3, requires_grad=True)
    statistics = VocabularyStatistics(torch.zeros(2, 3), score, torch.zeros(2, 3), None)
    verdict = torch.tensor([1.0, 0.0])
    log_beta_BT = torch.tensor([[0.5, 0.5, 0.99], [0.5, 0.5, 0.01]]).log()
    pull = {}
    for path in (0.0, 1.0):
        weights = objective(token_ce=0.0, terminal_ce=1.0, regulariser=0.0, path=path)
        values = soft_values(statistics, log_beta_BT, "mean")
        loss = value_loss(values, verdict, torch.ones(2, 3), None, weights, torch.tensor([0.5, 0.5]).log())
        pull[path] = torch.autograd.grad(loss.total_B.sum(), score)[0]
    assert float(pull[0.0][:, :2].abs().max()) == 0.0
    assert pull[1.0][0].max() < -0.9
    assert pull[1.0][1].min() > 0.9
