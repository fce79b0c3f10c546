"""Vocabulary statistics, values, masks and losses against plain formulas over the whole vocabulary.

Axes: B rollouts, T response tokens, V vocabulary, D and E widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dinado.objectives import vocabulary
from dinado.objectives.losses import LossWeights, oracle_loss
from dinado.objectives.values import TokenValues, hard_values, log_beta, nado_values, soft_values
from dinado.objectives.vocabulary import (
    Head,
    VocabularyStatistics,
    apply_link,
    token_log_probs,
    vocabulary_statistics,
)

B, T, V, D, E = 3, 5, 11, 6, 4
LINKS = ("log_ratio", "identity", "logsigmoid")
LENGTHS = (5, 1, 3)


class Case:
    """Random states, heads and tokens, the same at every construction."""

    def __init__(self, sharpness: float = 2.0) -> None:
        stream = torch.Generator().manual_seed(5)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=stream)

        self.base_BTD, self.own_BTE = draw(B, T, D), draw(B, T, E).requires_grad_()
        self.base_head = Head(draw(V, D) * sharpness, draw(V), 0.7)
        self.own_weight = draw(V, E).requires_grad_()
        self.own_bias = draw(V).requires_grad_()
        self.own_head = Head(self.own_weight, self.own_bias, 1.3)
        self.tokens_BT = torch.randint(V, (B, T), generator=stream)
        self.mask_BT = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()
        self.trained = (self.own_BTE, self.own_weight, self.own_bias)

    def statistics(self, link: str, **settings: object) -> VocabularyStatistics:
        return vocabulary_statistics(
            self.base_BTD, self.base_head, self.own_BTE, self.own_head, self.tokens_BT, self.mask_BT, link, **settings
        )

    def log_p_BTV(self) -> Tensor:
        head = self.base_head
        return (0.7 * (self.base_BTD.double() @ head.weight_VD.T.double() + head.bias_V.double())).log_softmax(-1)

    def score_BTV(self, link: str) -> Tensor:
        """The definition of each link, in float64."""
        u = 1.3 * (self.own_BTE.double() @ self.own_weight.T.double() + self.own_bias.double())
        if link == "log_ratio":
            return u.log_softmax(-1) - self.log_p_BTV()
        return u if link == "identity" else -torch.log1p(torch.exp(-u))

    def plain(self, link: str, support: int = 0) -> VocabularyStatistics:
        log_p, score, column = self.log_p_BTV(), self.score_BTV(link), self.tokens_BT[..., None]
        allowed = torch.ones_like(score, dtype=torch.bool)
        if support:
            likeliest = log_p.argsort(-1, descending=True)[..., :support]
            allowed = torch.zeros_like(allowed).scatter(-1, likeliest, True)
        columns = (
            log_p.gather(-1, column)[..., 0],
            score.gather(-1, column)[..., 0],
            (log_p.exp() * score.exp()).sum(-1).log(),
            score.masked_fill(~allowed, -math.inf).max(-1).values,
        )
        return VocabularyStatistics(*(c * self.mask_BT for c in columns))


def weighted_sum(statistics: VocabularyStatistics) -> Tensor:
    """A loss in which every field and position counts differently."""
    total = torch.zeros((), dtype=torch.float64)
    for index, field in enumerate(f for f in statistics if f is not None and f.requires_grad):
        total = total + (field.double() * torch.linspace(1, 2 + index, B * T).view(B, T)).sum()
    return total


# Vocabulary statistics


@pytest.mark.parametrize("chunk", [vocabulary.CHUNK_ELEMENTS, 2 * V, 1])
@pytest.mark.parametrize("support", [0, 3, V, 99])
@pytest.mark.parametrize("link", LINKS)
def test_statistics_are_the_full_vocabulary_formulas(
    link: str, support: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk)
    case, plain_case = Case(), Case()
    found, plain = case.statistics(link, support=support), plain_case.plain(link, min(support, V))
    for name, ours, exact in zip(VocabularyStatistics._fields, found, plain, strict=True):
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


@pytest.mark.parametrize("chunk", [10**6, V])
def test_token_log_probs(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk)
    case = Case()
    found = token_log_probs(case.own_BTE, case.own_head, case.tokens_BT, case.mask_BT)
    u = 1.3 * (case.own_BTE.double() @ case.own_weight.T.double() + case.own_bias.double())
    exact = u.log_softmax(-1).gather(-1, case.tokens_BT[..., None])[..., 0] * case.mask_BT
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    weight_BT = torch.linspace(1, 2, B * T).view(B, T)
    ours = torch.autograd.grad((found * weight_BT).sum(), case.trained)
    for a, b in zip(ours, torch.autograd.grad((exact * weight_BT).sum(), case.trained), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_padding_may_hold_anything() -> None:
    case, other = Case(), Case()
    padding = other.mask_BT == 0
    other.base_BTD[padding] = math.nan
    with torch.no_grad():
        other.own_BTE[padding] = math.inf
    found = other.statistics("logsigmoid")
    for a, b in zip(case.statistics("logsigmoid"), found, strict=True):
        assert torch.equal(a, b)
    for gradient in torch.autograd.grad(weighted_sum(found), other.trained):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("chunk", [vocabulary.CHUNK_ELEMENTS, 2 * V])
@pytest.mark.parametrize("link", LINKS)
def test_nothing_over_the_vocabulary_is_kept(link: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that autograd saves between the passes are the states and tokens that come in."""
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk)

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
    u_NV = torch.tensor([[-200.0, 200.0, 0.0]])
    log_p_NV = torch.tensor([[0.2, 0.3, 0.5]]).log()
    score_NV = apply_link("logsigmoid", u_NV, log_p_NV)
    assert score_NV[0].tolist() == pytest.approx([-200.0, 0.0, math.log(0.5)], abs=1e-6)


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
    loss = oracle_loss(found, torch.tensor([1.0, 0.0, 0.5]), torch.ones(B, T), None, LossWeights())
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
    weights = LossWeights(token_ce=0.7, terminal_ce=0.2, regulariser=0.3, direction=direction, masks=masks)
    loss = oracle_loss(hand_values(), torch.tensor(SCORES), HAND_MASK, FINISHED, weights)
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
    nothing = LossWeights(token_ce=0.0, regulariser=0.0, overflow=0.0)

    def total(**changed: object) -> list[float]:
        weights = replace(nothing, **changed)  # type: ignore[arg-type]
        return oracle_loss(hand_values(), torch.tensor(SCORES), HAND_MASK, FINISHED, weights).total_B.tolist()

    rows, links = HAND_ROWS["correct"], HAND_LINKS["correct"]
    value = [2 * sum(ce(EXPECTED[b][i], SCORES[b]) for i in rows[b]) for b in range(3)]
    assert total(value_ce=2.0) == pytest.approx(value, abs=1e-5)
    pairs = [[(EXPECTED[b][i], R[b][j]) for i, j in links[b]] for b in range(3)]
    poisson = [3 * sum(e * math.log(e / r) - e + r for e, r in pair) for pair in pairs]
    assert total(regulariser=3.0, consistency="poisson") == pytest.approx(poisson, abs=1e-5)
    weights = replace(nothing, regulariser=3.0, consistency="poisson")
    reported = oracle_loss(hand_values(), torch.tensor(SCORES), HAND_MASK, FINISHED, weights).consistency_B
    assert reported.tolist() == pytest.approx([sum(kl(e, r) for e, r in pair) for pair in pairs], abs=1e-5)


def test_official_masks_need_to_know_what_is_finished() -> None:
    with pytest.raises(ValueError, match="finished"):
        oracle_loss(hand_values(), torch.tensor(SCORES), HAND_MASK, None, LossWeights(masks="official"))


@pytest.mark.parametrize("masks", ["correct", "official"])
def test_gradients_reach_exactly_the_rows_that_count(masks: str) -> None:
    log_r = torch.tensor(R).log().requires_grad_()
    log_v = torch.tensor(EXPECTED).log().requires_grad_()
    weights = LossWeights(terminal_ce=0.5, masks=masks)
    oracle_loss(TokenValues(log_r, log_v), torch.tensor(SCORES), HAND_MASK, FINISHED, weights).total_B.sum().backward()
    for b in range(3):
        assert log_r.grad[b].nonzero()[:, 0].tolist() == HAND_ROWS[masks][b]
        assert log_v.grad[b].nonzero()[:, 0].tolist() == [i for i, _ in HAND_LINKS[masks][b]]


@pytest.mark.parametrize("direction", ["expected_first", "predicted_first"])
@pytest.mark.parametrize("detach", ["none", "expected", "predicted"])
def test_detach_stops_one_side_only(detach: str, direction: str) -> None:
    log_r = torch.tensor(R).log().requires_grad_()
    log_v = torch.tensor(EXPECTED).log().requires_grad_()
    weights = LossWeights(token_ce=0.0, regulariser=1.0, overflow=0.0, direction=direction, detach=detach)
    oracle_loss(TokenValues(log_r, log_v), torch.tensor(SCORES), HAND_MASK, FINISHED, weights).total_B.sum().backward()
    assert bool(log_r.grad.any()) == (detach != "predicted")
    assert (log_v.grad is not None and bool(log_v.grad.any())) == (detach != "expected")


def test_values_that_are_held_fixed_leave_the_regulariser_to_the_ratios() -> None:
    statistics = Case().statistics("identity")
    score = statistics.score.detach().requires_grad_()
    log_beta_BT = torch.full((B, T), -0.7, requires_grad=True)
    values = soft_values(statistics._replace(score=score), log_beta_BT, "mean")
    weights = LossWeights(token_ce=0.0, regulariser=1.0, overflow=0.0)
    losses = {}
    for detach in ("none", "values"):
        changed = replace(weights, detach=detach)  # type: ignore[arg-type]
        losses[detach] = oracle_loss(values, torch.ones(B), torch.ones(B, T), None, changed).total_B
    torch.testing.assert_close(losses["none"], losses["values"])
    of_beta, of_score = torch.autograd.grad(losses["values"].sum(), [log_beta_BT, score], allow_unused=True)
    assert of_beta is None or not of_beta.any()
    assert of_score.any()


def test_overflow_is_the_square_of_what_exceeds_certainty() -> None:
    log_r = torch.tensor([[0.3, -1.0, 0.2, 9.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    values = TokenValues(log_r, torch.zeros(1, 4))
    weights = LossWeights(token_ce=0.0, regulariser=0.0, overflow=2.0)
    with_it = oracle_loss(values, torch.ones(1), mask, None, weights).total_B
    assert with_it.tolist() == pytest.approx([2 * (0.09 + 0.04)])
    assert oracle_loss(values, torch.ones(1), mask, None, replace(weights, overflow=0.0)).total_B.tolist() == [0.0]


def test_the_path_is_the_loss_of_hard_with_the_same_ratios() -> None:
    statistics = Case().statistics("identity")
    score_B, log_root_B = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.3, 0.5, 0.8]).log()
    mask_BT = torch.tensor([[1] * T, [1] * T, [1] * (T - 1) + [0]])
    values = soft_values(statistics, torch.full((B, T), -0.7), "mean")
    weights = LossWeights(token_ce=0.3, terminal_ce=0.9, regulariser=0.0, overflow=0.4)

    def total(values: TokenValues, log_root_B: torch.Tensor | None = None, **changed: float) -> torch.Tensor:
        return oracle_loss(values, score_B, mask_BT, None, replace(weights, **changed), log_root_B).total_B

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
        weights = LossWeights(token_ce=0.0, terminal_ce=1.0, regulariser=0.0, path=path)
        values = soft_values(statistics, log_beta_BT, "mean")
        loss = oracle_loss(values, verdict, torch.ones(2, 3), None, weights, torch.tensor([0.5, 0.5]).log())
        pull[path] = torch.autograd.grad(loss.total_B.sum(), score)[0]
    assert float(pull[0.0][:, :2].abs().max()) == 0.0
    assert pull[1.0][0].max() < -0.9
    assert pull[1.0][1].min() > 0.9
