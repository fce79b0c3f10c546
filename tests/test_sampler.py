"""Sampling: frequencies against exact probabilities, recorded log-probabilities, proposals, reproducibility."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.bases.markov import build_markov
from dinado.bases.tiny_gpt2 import build_tiny_gpt2
from dinado.batch import RolloutBatch
from dinado.prompt import Prompt
from dinado.rollouts import sampler
from dinado.rollouts.proposal import Proposal
from dinado.rollouts.sampler import Samples, inverse_cdf, sample, uniforms
from dinado.seeding import generator, uniform_numbers

VOCAB = 5
START = Prompt("0", "")


@pytest.fixture(scope="module")
def markov() -> BaseLM:
    return BaseLM(*build_markov(VOCAB, seed=3))


@pytest.fixture(scope="module")
def gpt2() -> BaseLM:
    return BaseLM(*build_tiny_gpt2(VOCAB, seed=1))


def draw(base: BaseLM, prompts: list[Prompt], k: int, budget: int = 8, name: int = 0, **kwargs: object) -> Samples:
    ids_PS, mask_PS = base.encode_prompts(prompts)
    uniform_NT = uniforms(range(len(prompts)), k, budget, "test", name)
    decoder = Decoder(base.model, base.temperature)
    return sample(decoder, ids_PS, mask_PS, base.eos_ids, uniform_NT, **kwargs)  # type: ignore[arg-type]


def as_batch(base: BaseLM, prompts: list[Prompt], samples: Samples) -> RolloutBatch:
    ids_PS, mask_PS = base.encode_prompts(prompts)
    rows, width = len(samples.tokens), max(map(len, samples.tokens))
    tokens_BT, mask_BT = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width, dtype=torch.long)
    for row, tokens in enumerate(samples.tokens):
        tokens_BT[row, : len(tokens)] = torch.tensor(tokens)
        mask_BT[row, : len(tokens)] = 1
    ones_B = torch.ones(rows)
    prompt_of_row_B = torch.tensor(samples.prompt_of)
    return RolloutBatch(
        ids_PS, mask_PS, prompt_of_row_B, tokens_BT, mask_BT, torch.zeros(rows, width), ones_B, ones_B, ones_B
    )


@pytest.mark.parametrize("proposal", [Proposal(), Proposal(temperature=1.7), Proposal(top_k=3)])
def test_frequencies_are_the_exact_probabilities(markov: BaseLM, proposal: Proposal) -> None:
    samples = draw(markov, [START], 6000, budget=2, proposal=proposal)
    log_s_VV = proposal.log_probs(markov.model.lm_head.weight.T.log_softmax(1))
    first_V = log_s_VV[0].exp()
    exact = {(0,): float(first_V[0])}
    exact |= {(a, b): float(first_V[a] * log_s_VV[a, b].exp()) for a in range(1, VOCAB) for b in range(VOCAB)}
    exact = {tokens: p for tokens, p in exact.items() if p > 0}
    counts = Counter(map(tuple, samples.tokens))
    assert set(counts) <= set(exact)
    expected = np.array(list(exact.values()))
    expected *= 6000 / expected.sum()  # they are float32
    observed = np.array([counts[tokens] for tokens in exact])
    common = expected >= 5
    merged = [np.append(x[common], x[~common].sum()) if (~common).any() else x for x in (observed, expected)]
    assert stats.chisquare(*merged).pvalue > 1e-3


def test_frequencies_test_notices_a_wrong_distribution(markov: BaseLM) -> None:
    samples = draw(markov, [START], 6000, budget=1, proposal=Proposal(temperature=1.15))
    counts = np.bincount([tokens[0] for tokens in samples.tokens], minlength=VOCAB)
    base_V = markov.model.lm_head.weight[:, 0].softmax(0).detach().double().numpy()
    assert stats.chisquare(counts, base_V / base_V.sum() * 6000).pvalue < 1e-3


@pytest.mark.parametrize("name", ["markov", "gpt2"])
def test_log_p_is_what_the_base_says(name: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(name)
    prompts = [START, Prompt("1", "3 1 2"), Prompt("2", "4")]
    samples = draw(base, prompts, 6, proposal=Proposal(temperature=1.5, top_p=0.9))
    log_p_BT = base.log_probs(as_batch(base, prompts, samples))
    for row, recorded in enumerate(samples.log_p):
        assert recorded == pytest.approx(log_p_BT[row, : len(recorded)].tolist(), abs=1e-5)
    assert samples.prompt_of == [0] * 6 + [1] * 6 + [2] * 6


def test_base_temperature_belongs_to_p() -> None:
    warm = BaseLM(*build_markov(VOCAB, seed=3), temperature=2.0)
    samples = draw(warm, [START], 50)
    table_VV = (warm.model.lm_head.weight.T / 2.0).log_softmax(1)
    for tokens, log_p, log_s in zip(samples.tokens, samples.log_p, samples.log_s, strict=True):
        exact = [float(table_VV[a, b]) for a, b in zip([0, *tokens], tokens, strict=False)]
        assert log_p == pytest.approx(exact, abs=1e-5)
        assert log_s == log_p


def test_finished_rows_end_with_their_only_end_token_and_others_use_the_budget(markov: BaseLM) -> None:
    samples = draw(markov, [START], 300, budget=4)
    assert 0 < sum(samples.finished) < 300
    for tokens, finished, log_p, log_s in zip(
        samples.tokens, samples.finished, samples.log_p, samples.log_s, strict=True
    ):
        assert finished == (tokens[-1] == 0)
        assert 0 not in tokens[:-1]
        assert finished or len(tokens) == 4
        assert len(tokens) == len(log_p) == len(log_s) <= 4


def reference_proposal(p: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """The definition, token by token: flatten, keep the k likeliest, then the smallest set with mass top_p."""
    s = p ** (1 / temperature)
    s /= s.sum()
    if top_k:
        s[np.argsort(-s)[top_k:]] = 0
        s /= s.sum()
    mass, kept = 0.0, np.zeros_like(s)
    for token in np.argsort(-s):
        if mass >= top_p:
            break
        kept[token] = s[token]
        mass += s[token]
    return kept / kept.sum()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (4, 1.0), (0, 0.6), (0, 1e-6), (6, 0.75), (99, 0.9)])
def test_proposals_match_their_definition(temperature: float, top_k: int, top_p: float) -> None:
    log_p_NV = torch.randn(20, 9, generator=generator("proposal"), dtype=torch.float64).mul(2).log_softmax(1)
    log_s_NV = Proposal(temperature, top_k, top_p).log_probs(log_p_NV)
    assert torch.allclose(log_s_NV.exp().sum(1), torch.ones(20, dtype=torch.float64))
    for log_p_V, log_s_V in zip(log_p_NV, log_s_NV, strict=True):
        expected = reference_proposal(log_p_V.exp().numpy().copy(), temperature, top_k, top_p)
        np.testing.assert_allclose(log_s_V.exp().numpy(), expected, atol=1e-12)


def test_recorded_log_s_is_the_truncated_proposal(markov: BaseLM) -> None:
    proposal = Proposal(temperature=1.3, top_k=2)
    samples = draw(markov, [START], 40, proposal=proposal)
    log_s_VV = proposal.log_probs(markov.model.lm_head.weight.T.log_softmax(1))
    for tokens, log_s in zip(samples.tokens, samples.log_s, strict=True):
        exact = [float(log_s_VV[a, b]) for a, b in zip([0, *tokens], tokens, strict=False)]
        assert log_s == pytest.approx(exact, abs=1e-5)
        assert np.isfinite(log_s).all()


def test_inverse_cdf_never_draws_what_cannot_be_drawn() -> None:
    log_s_NV = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).log().expand(4, 5)
    uniform_N = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1.0 - 1e-16], dtype=torch.float64)
    assert inverse_cdf(log_s_NV, uniform_N).tolist() == [1, 1, 3, 3]


def test_inverse_cdf_over_a_vocabulary_of_several_blocks() -> None:
    vocabulary = 3 * sampler.CDF_BLOCK + 17
    stream = generator("cdf")
    log_s_NV = torch.randn(500, vocabulary, generator=stream).mul(2).log_softmax(1)
    uniform_N = torch.rand(500, generator=stream, dtype=torch.float64)
    cdf_NV = log_s_NV.exp().double().cumsum(1)
    flat_N = torch.searchsorted(cdf_NV, (uniform_N * cdf_NV[:, -1])[:, None])[:, 0]
    # Both add up in an order of their own; on a border they may differ.
    assert (inverse_cdf(log_s_NV, uniform_N) != flat_N).sum() <= 1


def test_every_prompt_is_read_once_and_every_token_once(gpt2: BaseLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What more samples a prompt cost is their own tokens."""
    read: list[int] = []
    forward = gpt2.model.forward

    def counted(ids_NL: torch.Tensor, **kwargs: object) -> object:
        read.append(ids_NL.numel())
        return forward(ids_NL, **kwargs)

    decoder = Decoder(gpt2.model)
    monkeypatch.setattr(decoder, "model", counted)
    ids_PS, mask_PS = gpt2.encode_prompts([Prompt("0", "3 1 2"), Prompt("1", "2 2 4")])
    for k in (1, 16):
        read.clear()
        sample(decoder, ids_PS, mask_PS, (), uniforms(range(2), k, 7, "count"))
        assert sum(read) == 2 * 3 + 2 * k * (7 - 1)


def test_streams_that_differ_in_one_word_have_nothing_in_common() -> None:
    names = [("a", 0, 1), ("a", 1, 0), ("b", 0, 1), ("a", 0, 1, 0)]
    drawn = np.concatenate([uniform_numbers(1000, *name) for name in names])
    assert len(np.unique(drawn)) == 4000 and stats.kstest(drawn, "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(uniform_numbers(1000, *names[0])[:7], uniform_numbers(7, *names[0]))


def test_numbers_that_do_not_fit_the_prompts_are_refused(gpt2: BaseLM) -> None:
    with pytest.raises(ValueError, match="3 rows of uniform numbers for 2 prompts"):
        sample(Decoder(gpt2.model), *gpt2.encode_prompts([START, START]), (), torch.zeros(3, 4))


def test_equal_streams_give_equal_samples_and_others_do_not(gpt2: BaseLM) -> None:
    assert draw(gpt2, [START], 20) == draw(gpt2, [START], 20)
    assert draw(gpt2, [START], 20).tokens != draw(gpt2, [START], 20, name=1).tokens


@pytest.mark.parametrize("below", [0.0, 1.1])
def test_leaving_finished_rows_in_or_out_changes_nothing(
    gpt2: BaseLM, below: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [START, Prompt("1", "2 1 4")]
    usual = draw(gpt2, prompts, 25)
    monkeypatch.setattr(sampler, "COMPACT_BELOW", below)
    other = draw(gpt2, prompts, 25)
    assert other.tokens == usual.tokens and other.finished == usual.finished
    for a, b in zip(other.log_p, usual.log_p, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("name", ["markov", "gpt2"])
def test_responses_do_not_depend_on_what_is_sampled_beside_them(
    name: str, size: int, request: pytest.FixtureRequest
) -> None:
    """A prompt's stream gives the same texts in batches of any size, and with more samples or more tokens."""
    base = request.getfixturevalue(name)
    prompts = [Prompt(str(i), " ".join(["3", "1", "2", "4"][: i % 4])) for i in range(5)]
    decoder = Decoder(base.model, base.temperature)

    def draw_some(start: int, stop: int, k: int, budget: int) -> list[list[int]]:
        uniform_NT = uniforms(range(start, stop), k, budget, "beside")
        return sample(decoder, *base.encode_prompts(prompts[start:stop]), base.eos_ids, uniform_NT).tokens

    whole = draw_some(0, 5, 6, 8)
    parts = [tokens for start in range(0, 5, size) for tokens in draw_some(start, min(start + size, 5), 6, 8)]
    assert parts == whole
    assert len({tuple(tokens) for tokens in whole}) > 5
    wider, longer = draw_some(0, 5, 9, 8), draw_some(0, 5, 6, 12)
    assert [tokens for row, tokens in enumerate(wider) if row % 9 < 6] == whole
    assert [tokens[:8] for tokens in longer] == whole


def test_left_padding_changes_nothing(gpt2: BaseLM) -> None:
    """A prompt of 1 token beside one of 3, sampled by the same uniform numbers as alone."""
    prompts = [Prompt("0", "2"), Prompt("1", "3 1 2")]
    together = draw(gpt2, prompts, 10)
    alone = draw(gpt2, prompts[:1], 10)
    assert together.tokens[:10] == alone.tokens
    for a, b in zip(together.log_p[:10], alone.log_p, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
