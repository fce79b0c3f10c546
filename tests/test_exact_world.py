"""The exact worlds against brute-force enumeration of every response."""

import itertools
import math

import pytest
import torch

from dinado.bases.markov import build_markov, transition_table
from dinado.bases.tiny_gpt2 import build_tiny_gpt2
from dinado.errors import ConfigError
from dinado.exact import EnumeratedWorld, MarkovWorld, causal_lm_rows
from dinado.oracles.tokens import token_dfa
from dinado.seeding import generator

V, T = 4, 4
PREFIXES = [list(p) for i in range(T) for p in itertools.product(range(1, V), repeat=i)]
RESPONSES = [[*p, 0] for p in PREFIXES] + [list(p) for p in itertools.product(range(1, V), repeat=T)]
ORACLES = [
    {"required": (1, 3)},
    {"avoided": (2,)},
    {"ends_with": 1},
    {"required": (2,), "avoided": (3,), "ends_with": 2},
]


def judge(response, required=(), avoided=(), ends_with=None):
    words = [v for v in response if v != 0]
    ends = ends_with is None or (bool(words) and words[-1] == ends_with)
    return set(required) <= set(words) and not set(avoided) & set(words) and ends


def next_log_probs(model, prefix):
    """One unpadded, uncached call per prefix: the slow way that shares nothing with the worlds."""
    with torch.no_grad():
        return model(torch.tensor([[0, *prefix]])).logits[0, -1].double().log_softmax(-1).tolist()


def response_log_probs(model):
    rows = {tuple(p): next_log_probs(model, p) for p in PREFIXES}
    return [sum(rows[tuple(y[:i])][v] for i, v in enumerate(y)) for y in RESPONSES]


def brute_value(log_p, scores, prefix):
    """E_p[C | prefix] from the list of complete responses; 0/0 cannot occur because p > 0."""
    rest = [(math.exp(lp), c) for y, lp, c in zip(RESPONSES, log_p, scores, strict=True) if y[: len(prefix)] == prefix]
    return sum(p * c for p, c in rest) / sum(p for p, _ in rest)


def brute_kl(log_a, log_b):
    return sum(math.exp(a) * (a - b) for a, b in zip(log_a, log_b, strict=True) if a > -math.inf)


def optimum(log_p, scores):
    log_total = math.log(sum(math.exp(lp) * c for lp, c in zip(log_p, scores, strict=True)))
    return [lp - log_total if c else -math.inf for lp, c in zip(log_p, scores, strict=True)]


@pytest.fixture(scope="module")
def markov():
    return build_markov(V, seed=1)[0]


@pytest.fixture(scope="module")
def other():
    """A model that reads the whole prefix, to measure the distance to."""
    return build_tiny_gpt2(V, seed=5)[0]


def worlds_of(markov, oracle):
    dfa = token_dfa(V, **oracle)
    return MarkovWorld.from_model(markov, T, dfa), EnumeratedWorld.from_model(markov, T, dfa)


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
@pytest.mark.parametrize("kind", ["markov", "enumerated", "gpt2"])
def test_everything_equals_enumeration_of_all_responses(markov, oracle, kind):
    if kind == "gpt2":
        model = build_tiny_gpt2(V, seed=3)[0]
        world = EnumeratedWorld.from_model(model, T, token_dfa(V, **oracle))
    else:
        model, world = markov, worlds_of(markov, oracle)[kind == "enumerated"]
    log_p = response_log_probs(model)
    scores = [judge(y, **oracle) for y in RESPONSES]
    assert sum(map(math.exp, log_p)) == pytest.approx(1)

    success = brute_value(log_p, scores, [])
    assert world.success_rate == pytest.approx(success, rel=1e-5)
    assert world.kl_base == pytest.approx(brute_kl(optimum(log_p, scores), log_p), rel=1e-5)
    everything = PREFIXES + RESPONSES
    values = [brute_value(log_p, scores, p) for p in everything]
    torch.testing.assert_close(world.value(everything).exp(), torch.tensor(values).double(), rtol=1e-5, atol=0)

    rows_p = torch.tensor([next_log_probs(model, p) for p in PREFIXES]).double()
    rows_r = torch.tensor([[brute_value(log_p, scores, [*p, v]) for v in range(V)] for p in PREFIXES]).double()
    torch.testing.assert_close(world.base_log_p(PREFIXES), rows_p, rtol=0, atol=1e-5)
    torch.testing.assert_close(world.next_log_values(PREFIXES).exp(), rows_r, rtol=1e-5, atol=0)
    product = rows_p.exp() * rows_r
    total = product.sum(-1, keepdim=True)
    expected = torch.where(total > 0, product / total, 0.0)
    actual = world.optimal_log_q(PREFIXES).exp()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(actual.sum(-1), (total[:, 0] > 0).double())


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_distances_equal_sums_over_responses(markov, other, oracle):
    exact, enumerated = worlds_of(markov, oracle)
    log_p, log_q = response_log_probs(markov), response_log_probs(other)
    scores = [judge(y, **oracle) for y in RESPONSES]
    q_fn = causal_lm_rows(other, [0])

    kl = brute_kl(optimum(log_p, scores), log_q)
    estimate = enumerated.kl_to_optimum(q_fn, 1, generator(0))
    assert estimate.mean == pytest.approx(kl, rel=1e-5)
    assert estimate.exhaustive and estimate.standard_error == 0 and estimate.num_prefixes == len(PREFIXES)
    assert enumerated.kl_from_base(q_fn) == pytest.approx(brute_kl(log_q, log_p), rel=1e-5)
    success = sum(math.exp(lq) * c for lq, c in zip(log_q, scores, strict=True))
    assert enumerated.success_of(q_fn) == pytest.approx(success, rel=1e-5)

    monte_carlo = exact.kl_to_optimum(q_fn, 3000, generator("kl", str(oracle)))
    assert abs(monte_carlo.mean - kl) < 4 * monte_carlo.standard_error < 0.2 * kl
    assert not monte_carlo.exhaustive and monte_carlo.num_prefixes > 3000


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_kl_of_the_base_is_minus_log_success_and_of_the_optimum_zero(markov, oracle):
    base_fn = causal_lm_rows(markov, [0])
    for world in worlds_of(markov, oracle):
        estimate = world.kl_to_optimum(base_fn, 2000, generator("base"))
        assert estimate.mean == pytest.approx(world.kl_base, rel=1e-6, abs=4 * estimate.standard_error)

        def optimal_fn(tokens, lengths, world=world):
            return world.rows(tokens).log_q_NTV

        assert world.kl_to_optimum(optimal_fn, 100, generator("q")).mean == pytest.approx(0, abs=1e-9)
    assert world.success_of(optimal_fn) == pytest.approx(1)
    assert world.kl_from_base(optimal_fn) == pytest.approx(world.kl_base)
    assert world.success_of(base_fn) == pytest.approx(world.success_rate)


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_kl_to_a_table_over_position_last_token_and_state(markov, oracle):
    exact, enumerated = worlds_of(markov, oracle)
    dfa = token_dfa(V, **oracle)
    table = torch.randn(T, V, len(dfa.accepting_S), V, generator=generator("table")).double().log_softmax(-1)

    def table_fn(tokens, lengths):
        last, state = torch.zeros(len(tokens), dtype=torch.long), torch.full((len(tokens),), int(dfa.start))
        rows = []
        for i in range(T):
            rows.append(table[i, last, state])
            last, state = tokens[:, i], dfa.transitions_SV[state, tokens[:, i]]
        return torch.stack(rows, 1)

    expected = enumerated.kl_to_optimum(table_fn, 1, generator(0)).mean
    assert exact.kl_to_tabular(table) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("index", [0, 1])
def test_draws_from_the_optimum_have_its_frequencies(markov, index):
    oracle, n = ORACLES[0], 20_000
    world = worlds_of(markov, oracle)[index]
    log_q = optimum(response_log_probs(markov), [judge(y, **oracle) for y in RESPONSES])
    draws = world.sample_optimal(n, generator("draws", index))
    assert draws == world.sample_optimal(n, generator("draws", index))
    counts = {tuple(y): 0 for y in RESPONSES}
    for y in draws:
        counts[tuple(y)] += 1
    chi2, cells = 0.0, 0
    for y, lq in zip(RESPONSES, log_q, strict=True):
        expected = n * math.exp(lq)
        if expected == 0:
            assert counts[tuple(y)] == 0
        elif expected >= 5:
            chi2, cells = chi2 + (counts[tuple(y)] - expected) ** 2 / expected, cells + 1
    assert cells > 10 and chi2 < cells + 4 * math.sqrt(2 * cells)


def test_a_model_that_forgets_part_of_the_optimum_is_infinitely_far(markov):
    def never_one(tokens, lengths):
        row = torch.tensor([0.5, 0.0, 0.25, 0.25]).log()
        return row.expand(len(tokens), T, V)

    for world in worlds_of(markov, {"required": (1,)}):
        assert world.kl_to_optimum(never_one, 50, generator(0)).mean == math.inf


def test_rows_at_prefixes_that_a_model_never_reaches_do_not_matter(markov):
    p = torch.tensor([0.5, 0.0, 0.25, 0.25])

    def nan_after_one(tokens, lengths):
        seen = (tokens == 1).cumsum(1).roll(1, 1)[..., None] > 0
        seen[:, 0] = False
        return torch.where(seen, math.nan, p.log())

    world = worlds_of(markov, {"required": (2,)})[1]
    never_two = sum(0.25**k * 0.5 for k in range(T)) + 0.25**T
    assert world.success_of(nan_after_one) == pytest.approx(1 - never_two)
    assert math.isfinite(world.kl_from_base(nan_after_one))


def test_unnormalised_rows_are_refused(markov):
    for world in worlds_of(markov, ORACLES[0]):
        with pytest.raises(ValueError, match="do not sum to one"):
            world.kl_to_optimum(lambda tokens, lengths: torch.zeros(len(tokens), T, V), 10, generator(0))


def test_worlds_without_an_optimum_or_too_large_are_user_errors(markov):
    with pytest.raises(ConfigError, match="no response of at most 2 tokens"):
        MarkovWorld.from_model(markov, 2, token_dfa(V, required=(1, 2, 3)))
    with pytest.raises(ConfigError, match=r"task\.length=12 give .* prefixes"):
        EnumeratedWorld.from_model(build_markov(12, 0)[0], 12, token_dfa(12, required=(3,)))


@pytest.mark.parametrize("bad", [[1, 0, 2], [1] * (T + 1), [V], [-1]], ids=str)
def test_prefixes_that_cannot_occur_are_refused(markov, bad):
    with pytest.raises(ValueError, match="not a prefix"):
        worlds_of(markov, ORACLES[0])[0].value([bad])


@pytest.mark.parametrize("complete", [[1, 3, 0], [1, 2, 3, 1]], ids=str)
def test_complete_responses_have_no_next_token(markov, complete):
    with pytest.raises(ValueError, match="complete response"):
        worlds_of(markov, ORACLES[0])[0].optimal_log_q([[1], complete])


def test_temperature_belongs_to_the_base(markov):
    dfa = token_dfa(V, **ORACLES[0])
    cold, enumerated = (W.from_model(markov, T, dfa, temperature=0.5) for W in (MarkovWorld, EnumeratedWorld))
    squared = MarkovWorld((2 * markov.lm_head.weight.detach().T).log_softmax(-1), T, dfa)
    assert cold.success_rate == pytest.approx(squared.success_rate, rel=1e-6)
    assert enumerated.success_rate == pytest.approx(squared.success_rate, rel=1e-6)
    assert cold.success_rate != pytest.approx(worlds_of(markov, ORACLES[0])[0].success_rate, rel=0.01)


def test_success_rate_agrees_with_ancestral_sampling():
    model, _ = build_markov(12, 0, (3, 7))
    world = MarkovWorld.from_model(model, 10, token_dfa(12, required=(3, 7)))
    p = model.lm_head.weight.detach().T.softmax(-1)
    n, source = 200_000, generator("ancestral")
    last, ended = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.bool)
    seen = torch.zeros(n, 12, dtype=torch.bool)
    for _ in range(10):
        last = torch.where(ended, 0, torch.multinomial(p[last], 1, generator=source)[:, 0])
        ended |= last == 0
        seen[torch.arange(n), last] = True
    rate = (seen[:, 3] & seen[:, 7]).double().mean().item()
    assert abs(rate - world.success_rate) < 4 * math.sqrt(rate * (1 - rate) / n)


@pytest.mark.parametrize(("rarity", "low", "high", "mean"), [(0.0, 0.04, 0.16, 0.08), (-1.5, 0.002, 0.02, 0.0075)])
def test_the_default_worlds_are_rare_enough_to_be_worth_controlling(rarity, low, high, mean):
    dfa = token_dfa(12, required=(3, 7))
    tables = [transition_table(12, seed, (3, 7), rarity) for seed in range(5)]
    rates = [MarkovWorld(table.log_softmax(-1), 10, dfa).success_rate for table in tables]
    assert all(low < rate < high for rate in rates)
    assert sum(rates) / 5 == pytest.approx(mean, rel=0.1)


def test_wide_beam_search_finds_the_likeliest_response(markov):
    log_p = response_log_probs(markov)
    best = RESPONSES[max(range(len(RESPONSES)), key=log_p.__getitem__)]
    prompt = torch.tensor([[0]])
    settings = {"num_beams": 81, "max_new_tokens": T, "do_sample": False, "length_penalty": 0.0}
    found = markov.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert found[0, 1:].tolist() == best
