"""With the exact R* plugged in, no loss has a gradient in expectation, and decoding is q*.

The base is a tiny GPT-2 whose every prefix is enumerated; the oracle is soft, C in {0.85, 0.1}, so that every R* lies
inside (0.1, 0.85) and no end of the log scale is touched. (At the ends the losses are continued on purpose: above
R = 0.99 a value counts as certain, tests/test_logspace.py.) Parameters are free tables, one row for each prefix, so
every parameterisation can represent R* exactly; they go through the same statistics, values and losses as in training.

Axes: N complete responses, M open prefixes, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import pytest
import torch
from helpers import objective, plain_log_probs
from torch import Tensor
from torch.nn.functional import logsigmoid

from dinado.bases.tiny_gpt2 import build_tiny_gpt2
from dinado.exact import EnumeratedWorld
from dinado.objectives.reduction import Head
from dinado.objectives.values import TokenValues, hard_values, nado_values, soft_values
from dinado.objectives.vocabulary import VocabularyStatistics, vocabulary_statistics
from dinado.oracles.tokens import TokenDFA, token_dfa
from lightning_modules.value_loss import value_loss
from workbench.settings.objective import ObjectiveSettings

V, T = 4, 3
ACCEPTED, REJECTED = 0.85, 0.1


class SoftWorld(EnumeratedWorld):
    """An exact world whose oracle is never sure."""

    @staticmethod
    def _log_accept(dfa: TokenDFA, state_M: Tensor) -> Tensor:
        return torch.where(dfa.accepting_S[state_M], ACCEPTED, REJECTED).double().log()


@dataclass
class Enumeration:
    """Everything about the world, by brute force over complete responses."""

    world: SoftWorld
    prefixes: list[tuple[int, ...]]
    log_p_MV: Tensor
    log_r_MV: Tensor
    """R* of each open prefix extended by each token."""
    log_root: float
    responses: list[tuple[int, ...]]
    p_N: Tensor
    score_N: Tensor

    @property
    def log_q_MV(self) -> Tensor:
        return (self.log_p_MV + self.log_r_MV).log_softmax(1)


@cache
def enumeration() -> Enumeration:
    model, _ = build_tiny_gpt2(V, seed=2)
    world = SoftWorld.from_model(model, T, token_dfa(V, required=[2]))
    prefixes = [prefix for n in range(T) for prefix in product(range(1, V), repeat=n)]
    responses = [(*prefix, 0) for prefix in prefixes] + list(product(range(1, V), repeat=T))
    step = {prefix: plain_log_probs(model, [0], [*prefix, 0])[-1].double() for prefix in prefixes}
    p_N = torch.stack([sum(step[y[:i]][y[i]] for i in range(len(y))) for y in responses]).exp()  # type: ignore[misc]
    score_N = torch.tensor([ACCEPTED if 2 in y else REJECTED for y in responses], dtype=torch.float64)

    def value(prefix: tuple[int, ...]) -> float:
        """E[C | prefix], over all its completions."""
        inside = torch.tensor([y[: len(prefix)] == prefix for y in responses])
        return float((p_N * score_N)[inside].sum() / p_N[inside].sum())

    return Enumeration(
        world=world,
        prefixes=prefixes,
        log_p_MV=torch.stack([step[prefix] for prefix in prefixes]),
        log_r_MV=torch.tensor([[value((*prefix, v)) for v in range(V)] for prefix in prefixes]).double().log(),
        log_root=float(torch.tensor(value(()), dtype=torch.float64).log()),
        responses=responses,
        p_N=p_N,
        score_N=score_N,
    )


def test_the_enumeration_is_the_exact_world() -> None:
    e = enumeration()
    assert float(e.p_N.sum()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(e.world.next_log_values(e.prefixes), e.log_r_MV, rtol=0, atol=1e-5)
    torch.testing.assert_close(e.world.optimal_log_q(e.prefixes), e.log_q_MV, rtol=0, atol=1e-5)
    assert e.world.log_success == pytest.approx(e.log_root, abs=1e-5)
    assert REJECTED - 1e-6 < float(e.log_r_MV.exp().min()) < float(e.log_r_MV.exp().max()) < ACCEPTED + 1e-6
    # The optimum over whole responses is p C / R.
    index = {prefix: m for m, prefix in enumerate(e.prefixes)}
    q_N = torch.stack([sum(e.log_q_MV[index[y[:i]], y[i]] for i in range(len(y))) for y in e.responses]).exp()  # type: ignore[misc]
    torch.testing.assert_close(q_N, e.p_N * e.score_N / (e.p_N * e.score_N).sum(), rtol=0, atol=1e-5)


# Parameterisations: the tables that hold R*, and how the code under test turns tables into values.


@dataclass
class Parameterisation:
    link: str
    tables: Callable[[Enumeration], dict[str, Tensor]]
    """Parameters at which R = R*; `score` is M x V score logits."""
    values: Callable[[VocabularyStatistics, dict[str, Tensor], Tensor], TokenValues]
    """Statistics, parameters and the prefix of each row ``[N, T]`` to values."""


def logit(log_r: Tensor) -> Tensor:
    return torch.logit(log_r.exp())


def soft(norm: str, link: str) -> Parameterisation:
    def tables(e: Enumeration) -> dict[str, Tensor]:
        # Any per-prefix shift of the scores is the same policy; one is added so that it has to drop out.
        shift = torch.linspace(-1, 1, len(e.prefixes), dtype=torch.float64)[:, None]
        score = e.log_q_MV if link == "log_ratio" else e.log_r_MV + shift
        mean_M = (e.log_p_MV + e.log_r_MV).logsumexp(1)
        return {"score": score, "norm": logit(e.log_r_MV.amax(1) if norm == "linf" else mean_M)}

    def values(s: VocabularyStatistics, parameters: dict[str, Tensor], prefix_NT: Tensor) -> TokenValues:
        return soft_values(s, logsigmoid(parameters["norm"][prefix_NT]), norm)  # type: ignore[arg-type]

    return Parameterisation(link, tables, values)


def hard(link: str) -> Parameterisation:
    def tables(e: Enumeration) -> dict[str, Tensor]:
        root = logit(torch.tensor([e.log_root], dtype=torch.float64))
        return {"score": e.log_q_MV if link == "log_ratio" else e.log_r_MV, "root": root}

    def values(s: VocabularyStatistics, parameters: dict[str, Tensor], prefix_NT: Tensor) -> TokenValues:
        return hard_values(s, logsigmoid(parameters["root"]).expand(len(prefix_NT)))

    return Parameterisation(link, tables, values)


PARAMETERISATIONS = {
    "nado": Parameterisation(
        "logsigmoid", lambda e: {"score": logit(e.log_r_MV)}, lambda s, parameters, prefix_NT: nado_values(s)
    ),
    "soft linf": soft("linf", "identity"),
    "soft mean": soft("mean", "identity"),
    "merge linf": soft("linf", "log_ratio"),
    "merge mean": soft("mean", "log_ratio"),
    "hard": hard("identity"),
    "hard policy": hard("log_ratio"),
}

NO_TERM = objective(token_ce=0.0, terminal_ce=0.0, regulariser=0.0, overflow=0.0)
LOSSES = {
    "token_ce": objective(NO_TERM, token_ce=1.0),
    "terminal_ce": objective(NO_TERM, terminal_ce=1.0),
    "default": objective(),
    "published": objective(token_ce=0.0, terminal_ce=1.0, regulariser=1.0),
    "value_ce": objective(NO_TERM, value_ce=1.0),
    "path poisson": objective(NO_TERM, token_ce=0.4, terminal_ce=0.4, path=1.0, path_loss="poisson"),
    "path": objective(NO_TERM, token_ce=0.4, terminal_ce=0.4, path=1.0),
} | {
    f"regulariser {direction} detach {detach}": objective(
        NO_TERM,
        regulariser=1.0,
        direction=direction,  # type: ignore[arg-type]
        detach=detach,  # type: ignore[arg-type]
    )
    for direction in ("expected_first", "predicted_first")
    for detach in ("none", "expected", "predicted", "values")
}
LOSSES |= {
    f"poisson {name}": objective(loss, consistency="poisson") for name, loss in LOSSES.items() if "regulariser" in name
}


def batch(e: Enumeration) -> tuple[Tensor, Tensor, Tensor]:
    """Every complete response once: tokens ``[N, T]``, mask, and the number of the prefix before each token."""
    index = {prefix: m for m, prefix in enumerate(e.prefixes)}
    tokens_NT = torch.tensor([[*y, *[0] * (T - len(y))] for y in e.responses])
    mask_NT = torch.tensor([[1] * len(y) + [0] * (T - len(y)) for y in e.responses])
    prefix_NT = torch.tensor([[index[y[:i]] if i < len(y) else 0 for i in range(T)] for y in e.responses])
    return tokens_NT, mask_NT, prefix_NT


def statistics_of(e: Enumeration, kind: Parameterisation, parameters: dict[str, Tensor]) -> VocabularyStatistics:
    """Tables as heads on one-hot states, so that what training runs is what is tested."""
    tokens_NT, mask_NT, prefix_NT = batch(e)
    one_hot_NTM = torch.eye(len(e.prefixes))[prefix_NT]
    base_head, head = Head(e.log_p_MV.T.float()), Head(parameters["score"].T)
    return vocabulary_statistics(one_hot_NTM, base_head, one_hot_NTM, head, tokens_NT, mask_NT, kind.link)  # type: ignore[arg-type]


def gradients(name: str, weights: ObjectiveSettings, shift: float = 0.0) -> dict[str, Tensor]:
    """Gradient of the expected loss at R*, or at R* with every parameter moved a little."""
    e, kind = enumeration(), PARAMETERISATIONS[name]
    parameters = {key: table.float() for key, table in kind.tables(e).items()}
    stream = torch.Generator().manual_seed(0)
    for key, table in parameters.items():
        parameters[key] = (table + shift * torch.randn(table.shape, generator=stream)).requires_grad_()
    _, mask_NT, prefix_NT = batch(e)
    values = kind.values(statistics_of(e, kind, parameters), parameters, prefix_NT)
    finished_N = torch.tensor([y[-1] == 0 for y in e.responses])
    loss = value_loss(values, e.score_N.float(), mask_NT, finished_N, weights)
    expected = (loss.total_B * e.p_N.float()).sum()
    grads = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_no_gradient_at_the_optimum(name: str, loss: str) -> None:
    for key, gradient in gradients(name, LOSSES[loss]).items():
        assert float(gradient.abs().max()) < 2e-6, key


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_a_gradient_elsewhere(name: str, loss: str) -> None:
    """The control: away from R* every loss pulls, but for Hard's regulariser, which is zero by construction."""
    largest = max(float(g.abs().max()) for g in gradients(name, LOSSES[loss], shift=0.5).values())
    if name.startswith("hard") and "regulariser" in loss:
        assert largest < 2e-6
    else:
        assert largest > 1e-3


def test_wrong_weights_are_noticed() -> None:
    """The control of the expectation: with every response counted equally R* is not the optimum."""
    e = enumeration()
    uniform_N, p_N = torch.full_like(e.p_N, 1 / len(e.p_N)), e.p_N
    try:
        e.p_N = uniform_N
        assert float(gradients("nado", LOSSES["token_ce"])["score"].abs().max()) > 1e-3
    finally:
        e.p_N = p_N


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_decoding_the_optimum_is_q_star(name: str) -> None:
    e, kind = enumeration(), PARAMETERISATIONS[name]
    parameters = {key: table.float() for key, table in kind.tables(e).items()}
    statistics = statistics_of(e, kind, parameters)
    tokens_NT, mask_NT, prefix_NT = batch(e)
    exact_NT = e.log_q_MV[prefix_NT].gather(-1, tokens_NT[..., None])[..., 0].exp()
    real = mask_NT.bool()
    torch.testing.assert_close(statistics.log_q.double().exp()[real], exact_NT[real], rtol=0, atol=1e-5)
    q_N = (statistics.log_q * mask_NT).sum(1).double().exp()
    torch.testing.assert_close(q_N, e.p_N * e.score_N / (e.p_N * e.score_N).sum(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_values_at_the_optimum_are_r_star(name: str) -> None:
    e, kind = enumeration(), PARAMETERISATIONS[name]
    parameters = {key: table.float() for key, table in kind.tables(e).items()}
    tokens_NT, mask_NT, prefix_NT = batch(e)
    values = kind.values(statistics_of(e, kind, parameters), parameters, prefix_NT)
    after_NT = e.log_r_MV[prefix_NT].gather(-1, tokens_NT[..., None])[..., 0]
    before_NT = torch.cat([torch.full((len(tokens_NT), 1), e.log_root), after_NT[:, :-1]], 1)
    real = mask_NT.bool()
    torch.testing.assert_close(values.log_r_BT[real].double(), after_NT[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(values.log_v_BT[real].double(), before_NT[real], rtol=0, atol=1e-5)
