"""Weights of rollouts: expectations by enumeration, large samples, tails, and how many rollouts weights are worth."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from helpers import plain_log_probs, prompt_tokens
from scipy import stats
from torch import Tensor

from datamodules.round_budgets import needed_counts
from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.metrics.intervals import weighted_proportion_interval
from dinado.objectives.pareto import fit_tail, pareto_smoothed
from dinado.objectives.weights import (
    clipped,
    effective_size,
    importance_weights,
    likelihood_weights,
    log_mixture,
    smoothed_root,
)
from dinado.oracles.tokens import token_dfa
from dinado.prompt import Prompt
from dinado.rollouts.density import proposal_log_density
from dinado.rollouts.proposal import Proposal
from engine.restoring import build_base
from lightning_modules.build_method import build_method
from lightning_modules.rollout_method import RolloutMethod
from workbench.settings import loader

VOCAB, LENGTH = 4, 4
START = Prompt("0", "")
FLAT, TOP = Proposal(temperature=2.0), Proposal(top_k=2)
WORDS = [f"task.vocab_size={VOCAB}", f"task.length={LENGTH}", "task.required=[1]", "network.width=16", "seed=4"]


@dataclasses.dataclass
class Everything:
    """All responses of a small world, their probabilities, and what an untrained method loses on each."""

    base: BaseLM
    batch: RolloutBatch
    log_p_N: Tensor
    loss_N: Tensor

    @property
    def p_N(self) -> Tensor:
        return self.log_p_N.exp()

    def log_s(self, proposal: Proposal) -> Tensor:
        return proposal_log_density(self.base, proposal, self.batch)


@cache
def everything() -> Everything:
    config = loader.load("exact_world", WORDS).config
    base = build_base(config)
    responses = [
        (*open_tokens, *end)
        for length in range(LENGTH + 1)
        for open_tokens in product(range(1, VOCAB), repeat=length)
        for end in ([(0,)] if length < LENGTH else [()])
    ]
    ids_PS, mask_PS = base.encode_prompts([START])
    batch = RolloutBatch.unjudged(ids_PS, mask_PS, [0] * len(responses), responses)
    log_p_BT = base.log_probs(batch)
    dfa = token_dfa(VOCAB, [1], [], None)
    score_B = torch.tensor([float(1 in response) for response in responses])
    assert dfa.num_states > 1
    batch = dataclasses.replace(batch, log_p_BT=log_p_BT, score_B=score_B)
    method = shaken(build_method(config, base))
    with torch.no_grad():
        loss_B = method.terms(batch).loss_B.double()
    return Everything(base, batch, log_p_BT.double().sum(1), loss_B)


def shaken(method: RolloutMethod) -> RolloutMethod:
    """Off the zero start, so that the loss depends on the response."""
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=stream))
    return method


def test_densities_are_those_of_the_sampler() -> None:
    world = everything()
    assert float(world.p_N.sum()) == pytest.approx(1, abs=1e-6)
    for proposal in (Proposal(), FLAT, TOP, Proposal(top_p=0.7), Proposal(temperature=0.5, top_k=3)):
        log_s_N = world.log_s(proposal)
        assert float(log_s_N.exp().sum()) == pytest.approx(1, abs=1e-6)
        for row in (0, 7, 30, 100):
            tokens = world.batch.response_BT[row][world.batch.response_mask_BT[row].bool()].tolist()
            log_p_TV = plain_log_probs(world.base.model, prompt_tokens(world.base, START), tokens, 1.0)
            plain = sum(float(proposal.log_probs(log_p_TV)[t, token]) for t, token in enumerate(tokens))
            assert float(log_s_N[row]) == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("proposals", [[FLAT], [Proposal(), FLAT], [Proposal(), TOP, FLAT]])
def test_weighted_losses_have_the_exact_expectation(proposals: list[Proposal]) -> None:
    """Summed over everything that could be drawn, before normalising: sum_j share_j E_s_j[w loss] = E_p[loss]."""
    world = everything()
    exact = float((world.p_N * world.loss_N).sum())
    log_s_NJ = torch.stack([world.log_s(proposal) for proposal in proposals], 1)
    count_J = torch.arange(1, len(proposals) + 1)
    share_J = count_J / count_J.sum()
    balance_N = (world.log_p_N - log_mixture(log_s_NJ, count_J)).exp()
    expected = float((share_J * log_s_NJ.exp() * (balance_N * world.loss_N)[:, None]).sum())
    assert expected == pytest.approx(exact, rel=1e-6)
    if TOP not in proposals:  # nothing makes up for what a proposal never draws
        own_NJ = (world.log_p_N[:, None] - log_s_NJ).exp()
        expected = float((share_J * log_s_NJ.exp() * own_NJ * world.loss_N[:, None]).sum())
        assert expected == pytest.approx(exact, rel=1e-6)


def test_no_weight_of_a_mixture_exceeds_one_over_the_share_of_the_base() -> None:
    world = everything()
    log_s_NJ = torch.stack([world.log_p_N, world.log_s(TOP)], 1)
    assert float((world.log_p_N - log_mixture(log_s_NJ, torch.tensor([1, 3]))).exp().max()) <= 4 + 1e-9


@pytest.mark.parametrize("kind", ["importance", "balance"])
def test_self_normalised_estimates_of_many_samples(kind: str) -> None:
    """Within five standard errors, which a weight that is off by a factor of p to some power is not."""
    world, num, stream = everything(), 40_000, torch.Generator().manual_seed(1)
    proposals = [FLAT] if kind == "importance" else [TOP, FLAT, Proposal()]
    log_s_NJ = torch.stack([world.log_s(proposal) for proposal in proposals], 1)
    drawn = [torch.multinomial(log_s_N.exp(), num, replacement=True, generator=stream) for log_s_N in log_s_NJ.T]
    row_K = torch.cat(drawn)
    log_mix_K = log_mixture(log_s_NJ, torch.full((len(proposals),), num))[row_K]
    weight_K = importance_weights(world.log_p_N[row_K], log_mix_K)
    exact = float((world.p_N * world.loss_N).sum())
    found = float((weight_K * world.loss_N[row_K]).mean())
    error = float((weight_K * (world.loss_N[row_K] - exact)).square().mean().sqrt()) / math.sqrt(len(row_K))
    assert abs(found - exact) < 5 * error
    plain = float(world.loss_N[row_K].mean())
    assert abs(plain - exact) > 10 * error, "without weights it is another number"


def test_a_truncated_proposal_gives_the_base_restricted_to_its_support() -> None:
    world = everything()
    log_s_N = world.log_s(TOP)
    inside_N = log_s_N > -torch.inf
    restricted = float((world.p_N * world.loss_N)[inside_N].sum() / world.p_N[inside_N].sum())
    exact = float((world.p_N * world.loss_N).sum())
    stream = torch.Generator().manual_seed(2)
    row_K = torch.multinomial(log_s_N.exp(), 40_000, replacement=True, generator=stream)
    weight_K = importance_weights(world.log_p_N[row_K], log_s_N[row_K])
    found = float((weight_K * world.loss_N[row_K]).mean())
    error = float((weight_K * (world.loss_N[row_K] - restricted)).square().mean().sqrt()) / math.sqrt(len(row_K))
    assert abs(found - restricted) < 5 * error < abs(exact - restricted)


def test_likelihood_weights_do_not_care_how_often() -> None:
    log_p_K = torch.tensor([0.5, 0.2, 0.1]).log()[[0, 1, 0, 2, 0]]
    weight_K = likelihood_weights(log_p_K, torch.tensor([7, 1, 7, 2, 7]))
    assert weight_K.tolist() == pytest.approx([5 * w / 0.8 for w in (0.5 / 3, 0.2, 0.5 / 3, 0.1, 0.5 / 3)])


def test_the_complement_stands_for_what_was_not_seen() -> None:
    """Averaged over many sets of 40 draws: with it the loss is right, without it biased towards likely responses."""
    world, stream = everything(), torch.Generator().manual_seed(3)
    exact = float((world.p_N * world.loss_N).sum())
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(3000):
        row_K = torch.multinomial(world.p_N, 40, replacement=True, generator=stream)
        for complement, values in found.items():
            weight_K = likelihood_weights(world.log_p_N[row_K], row_K, complement)
            assert float(weight_K.mean()) == pytest.approx(1)
            values.append(float((weight_K * world.loss_N[row_K]).mean()))
    error = np.std(found[True]) / math.sqrt(3000)
    assert abs(np.mean(found[True]) - exact) < 5 * error
    assert abs(np.mean(found[False]) - exact) > 10 * error


def test_clipping() -> None:
    weight_K = clipped(torch.tensor([1.0, 1.0, 1.0, 17.0]), 2.0)
    assert weight_K.tolist() == pytest.approx([1 / 3.25, 1 / 3.25, 1 / 3.25, 10 / 3.25])
    assert clipped(weight_K, 0.0) is weight_K


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.7, 1.2])
def test_the_shape_of_a_tail(shape: float) -> None:
    found = []
    for seed in range(20):
        draws = np.sort(stats.genpareto.rvs(shape, scale=3.0, size=500, random_state=seed))
        found.append(fit_tail(torch.from_numpy(draws)))
    assert np.mean([k for k, _ in found]) == pytest.approx(shape, abs=0.05)
    assert np.mean([scale for _, scale in found]) == pytest.approx(3.0, rel=0.05)


def test_pareto_smoothing_lowers_the_variance_of_heavy_weights() -> None:
    errors: dict[str, list[float]] = {"raw": [], "smoothed": []}
    shapes = []
    for seed in range(200):
        # w = p / s for p of rate 1 and s of rate 2.2: E_p[x] = 1, and w has no variance.
        x = stats.expon.rvs(scale=1 / 2.2, size=500, random_state=seed)
        weight = torch.from_numpy(np.exp(-x + 2.2 * x) / 2.2)
        smoothed, k = pareto_smoothed(weight)
        shapes.append(k)
        assert float(smoothed.mean()) == pytest.approx(float(weight.mean()))
        assert (smoothed[weight.argsort()].diff() >= 0).all(), "the order stays"
        for name, values in (("raw", weight), ("smoothed", smoothed)):
            errors[name].append(float((values.numpy() * x).sum() / values.sum()) - 1)
    assert np.mean(shapes) == pytest.approx(1 - 1 / 2.2, abs=0.1)
    assert np.std(errors["smoothed"]) < 0.95 * np.std(errors["raw"])
    assert abs(np.mean(errors["smoothed"])) < 0.1


@pytest.mark.parametrize("weight_K", [torch.ones(400), torch.rand(20), torch.ones(0)])
def test_weights_without_a_tail_stay(weight_K: Tensor) -> None:
    found, k = pareto_smoothed(weight_K)
    assert found is weight_K and math.isnan(k)


def test_what_weights_are_worth() -> None:
    assert effective_size(torch.ones(8)) == 8
    assert effective_size(torch.tensor([1.0, 0.0, 0.0])) == 1
    assert effective_size(torch.zeros(3)) == 0
    assert smoothed_root(torch.tensor([1.0, 0.0])) == pytest.approx(0.5)
    # Weights on one rollout make one rollout of two.
    assert smoothed_root(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])) == pytest.approx(1.5 / 2)
    # Equal weights count every draw, fractional verdicts too.
    assert smoothed_root(torch.tensor([0.5, 0.0, 0.1]), torch.full((3,), 7.0)) == pytest.approx(1.1 / 4)


def test_the_root_of_a_rare_oracle_is_known_from_a_proposal_that_succeeds() -> None:
    """Of draws from the base (one in five) and from q*, with balance weights: the prior must not decide the estimate.

    A prior added to the effective sample size, in which 200 heavy rejected draws count, more than triples it.
    """
    rate, share = 1e-3, 0.2
    score_K = (torch.arange(1000) < 800).float()
    weight_K = torch.where(score_K > 0, 1 / (share + (1 - share) / rate), 1 / share)
    assert smoothed_root(score_K, weight_K) == pytest.approx(rate, rel=0.03)
    # A single accepted draw of the base among many is worth one draw, not none.
    one_K = (torch.arange(1000) < 1).float()
    assert smoothed_root(one_K) == pytest.approx(1.5 / 1001)


def test_the_interval_of_a_weighted_rate_covers_it() -> None:
    """Flattened draws, 300 at a time: 95 % intervals have to hold the exact rate about as often."""
    world, stream = everything(), torch.Generator().manual_seed(5)
    exact = float((world.p_N * world.batch.score_B).sum())
    log_s_N, covered, trials = world.log_s(FLAT), 0, 1000
    for _ in range(trials):
        row_K = torch.multinomial(log_s_N.exp(), 300, replacement=True, generator=stream)
        weight_K = importance_weights(world.log_p_N[row_K], log_s_N[row_K])
        found = weighted_proportion_interval(world.batch.score_B[row_K], weight_K)
        covered += found.low <= exact <= found.high
    assert 0.92 < covered / trials < 0.98


def test_the_interval_of_equal_verdicts_is_as_wide_as_they_are_worth() -> None:
    even = weighted_proportion_interval(np.zeros(20), np.ones(20))
    uneven = weighted_proportion_interval(np.zeros(20), [100.0] + [1.0] * 19)
    assert even.mean == uneven.mean == 0 and even.high < uneven.high < 1
    assert math.isnan(weighted_proportion_interval([1.0], [0.0]).mean)


def test_budgets_go_where_little_was_accepted() -> None:
    counts = needed_counts([0.0, 1.0, 9.0, 0.0], per_prompt=8, cap=4.0)
    assert sum(counts) == 32
    assert counts[0] >= counts[1] > counts[2] and abs(counts[0] - counts[3]) <= 1
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.2)
    assert needed_counts([3.0] * 5, 6, 4.0) == [6] * 5


def test_budgets_have_a_cap_and_a_least() -> None:
    counts = needed_counts([0.0] + [1000.0] * 9, per_prompt=4, cap=2.0)
    assert counts[0] == 8 and min(counts) >= 2 and sum(counts) == 40
    assert needed_counts([0.0, 50.0], per_prompt=2, cap=1.0) == [2, 2]
