"""Text metrics against values worked out by hand and on human references; intervals against theory."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dinado.metrics import text_metrics
from dinado.metrics.bleu import bleu4
from dinado.metrics.cider import cider
from dinado.metrics.coverage import MicroCoverage
from dinado.metrics.diversity import distinct_n
from dinado.metrics.intervals import (
    mean_interval,
    paired_difference,
    proportion_interval,
    rate_interval,
    ratio_interval,
    unpaired_difference,
)
from dinado.metrics.rouge import common_length
from dinado.metrics.success import WeightedMean
from dinado.metrics.tokenise import tokenise
from dinado.oracles import LexicalOracle
from dinado.prompt import Prompt

HYPOTHESES = [
    "The cat sat on the mat.",
    "A boy kicks the ball!",
    "two dogs run, two dogs bark",
    "she reads",
    "rain",
    "The chef's knife cuts bread",
]
REFERENCES = [
    ["the cat sat on a mat", "There is a cat on the mat."],
    ["The boy kicked a ball over the fence", "A boy kicks the ball."],
    ["Two dogs run and bark."],
    ["She reads a long book in bed.", "she is reading"],
    ["Sun, wind and snow."],
    ["A chef's knife cuts the bread.", "The chef cuts bread", "bread"],
]


def test_tokenise() -> None:
    assert tokenise("The dog's off-lead, 'isn't' it?  Não!") == ("the", "dog's", "off", "lead", "isn't", "it", "não")


def test_bleu_by_hand() -> None:
    # One reference: 5/6, 3/5, 2/4 and 1/3 of the n-grams match, lengths are equal.
    one = bleu4([tokenise("the cat sat on the mat")], [[tokenise("the cat sat on a mat")]])
    assert one == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    # All matches, 4 tokens for a closest reference of 5: brevity penalty exp(1 - 5/4).
    short = bleu4([tokenise("a b c d")], [[tokenise("a b c d e"), tokenise("x a b c d y z")]])
    assert short == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_bleu_of_the_fixture() -> None:
    # Matched / all n-grams, counted by hand for each text:
    #   1: 5/6 5/5 4/6 2/2 0/1 5/5     2: 5/5 4/4 2/5 1/1 0/0 3/4
    #   3: 3/4 3/3 1/4 0/0 0/0 1/3     4: 1/3 2/2 0/3 0/0 0/0 0/2
    # Lengths 25, closest reference lengths 6 + 5 + 5 + 3 + 4 + 4 = 27 (a tie goes to the shorter).
    precisions = [21 / 25, 15 / 19, 8 / 14, 3 / 10]
    expected = 100 * math.exp(1 - 27 / 25) * math.prod(precisions) ** 0.25
    assert text_metrics(HYPOTHESES, REFERENCES)["bleu4"] == pytest.approx(expected)


def test_rouge_l_of_the_fixture() -> None:
    def f(precision: float, recall: float) -> float:
        return (1 + 1.44) * precision * recall / (recall + 1.44 * precision)

    expected = [f(5 / 6, 5 / 6), 1.0, f(4 / 6, 4 / 5), f(2 / 2, 2 / 7), 0.0, f(4 / 5, 1.0)]
    expected[3] = f(2 / 2, 1 / 3)  # the largest recall is of the other reference
    assert text_metrics(HYPOTHESES, REFERENCES)["rouge_l"] == pytest.approx(100 * sum(expected) / 6)


@settings(deadline=None)
@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_common_length_against_the_table(first: str, second: str) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert common_length(first, second) == table[-1][-1]


def test_cider_by_hand() -> None:
    # Two documents, so every n-gram of one document weighs log 2 and "a" of both weighs 0.
    hypotheses = [tokenise("a b"), tokenise("c x")]
    references = [[tokenise("a b b")], [tokenise("a c")]]
    # First: unigrams (b: 1) against (b: 2) with clipping 1 * 2 / (1 * 2) = 1; bigrams (ab) against (ab, bb):
    # 1 / sqrt 2; one word shorter. Second: unigrams (c, x) against (c): x is in no document, so weighs log 2 too.
    first = (1 + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    second = 1 / math.sqrt(2) / 4
    assert cider(hypotheses, references) == pytest.approx(100 * (first + second) / 2)


def dense_cider(hypotheses: list[tuple[str, ...]], references: list[list[tuple[str, ...]]]) -> float:
    """CIDEr-D with explicit vectors over all n-grams."""
    total = 0.0
    documents = list(dict.fromkeys(tuple(group) for group in references))
    for n in range(1, 5):

        def counts(text: tuple[str, ...], n: int = n) -> Counter:
            return Counter(text[i : i + n] for i in range(len(text) - n + 1))

        axis = sorted({g for text in [*hypotheses, *(r for d in documents for r in d)] for g in counts(text)})
        held = np.array([sum(any(g in counts(r) for r in d) for d in documents) for g in axis])
        idf = np.log(len(documents)) - np.log(np.maximum(held, 1))
        for hypothesis, group in zip(hypotheses, references, strict=True):
            h = idf * [counts(hypothesis)[g] for g in axis]
            for reference in group:
                r = idf * [counts(reference)[g] for g in axis]
                if h.any() and r.any():
                    cosine = np.minimum(h, r) @ r / (np.linalg.norm(h) * np.linalg.norm(r))
                    gap = len(hypothesis) - len(reference)
                    total += 10 * cosine * math.exp(-(gap**2) / 72) / len(group) / 4
    return 10 * total / len(hypotheses)


words = st.lists(st.sampled_from("abcd"), max_size=7).map(tuple)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_cider_against_dense_vectors(pairs: list) -> None:
    hypotheses, references = [text for text, _ in pairs], [group for _, group in pairs]
    assert cider(hypotheses, references) == pytest.approx(dense_cider(hypotheses, references), abs=1e-9)


def test_samples_of_one_prompt_do_not_change_document_frequencies() -> None:
    once = text_metrics(HYPOTHESES, REFERENCES)
    assert text_metrics(HYPOTHESES * 5, REFERENCES * 5) == pytest.approx(once)


def test_texts_without_references_are_left_out() -> None:
    assert text_metrics([], []) == {}
    assert text_metrics(["a", "b"], [[], []]) == {}
    assert text_metrics([*HYPOTHESES, "stray"], [*REFERENCES, []]) == text_metrics(HYPOTHESES, REFERENCES)


def test_empty_texts_score_zero() -> None:
    assert text_metrics(["", "..."], [["a b c d"], ["e f g h"]]) == {"bleu4": 0.0, "rouge_l": 0.0, "cider": 0.0}


def test_human_references(data_root: Path) -> None:
    rows = [json.loads(line) for line in (data_root / "commongen" / "dev.jsonl").read_text().splitlines()]
    hypotheses, references = [row["references"][0] for row in rows], [row["references"][1:] for row in rows]
    start = time.perf_counter()
    result = text_metrics(hypotheses, references)
    assert time.perf_counter() - start < 10  # 0.6 s on an idle core
    assert {name: round(value, 2) for name, value in result.items()} == {
        "bleu4": 20.82,
        "rouge_l": 47.51,
        "cider": 14.21,
    }


def test_distinct() -> None:
    assert distinct_n(["a b a", "A b!"], 1) == 2 / 5
    assert distinct_n(["a b a", "A b!"], 2) == 2 / 3
    assert math.isnan(distinct_n(["a", ""], 2))


# ---------------------------------------------------------------- means over processes


def test_weighted_mean_is_a_ratio_of_sums_over_processes() -> None:
    first, second = WeightedMean(), WeightedMean()
    first.update(torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]))
    second.update(torch.tensor([0.0, 1.0]), torch.tensor([3.0, 2.0]))
    assert second.compute().item() == pytest.approx(2 / 5)
    first.merge_state(second)  # what a reduction over processes does
    assert first.compute().item() == pytest.approx(5 / 10)
    first.reset()
    first.update(torch.full((10_000,), 0.1), 1e-4)
    assert first.compute().item() == pytest.approx(0.1, abs=1e-8)


def test_micro_coverage() -> None:
    metric = MicroCoverage(LexicalOracle())
    prompts = [Prompt("p", "", {"concepts": ["dog", "run", "park"]}), Prompt("q", "", {"concepts": ["cat"]})]
    metric.update(prompts[:1], ["Dogs ran."])
    metric.update(prompts[1:], ["a hat"])
    assert metric.compute().item() == 2 / 4  # the mean of the texts' shares would be 1/3


# ---------------------------------------------------------------- intervals


def test_wilson_against_scipy() -> None:
    for successes, total in [(0, 5), (3, 10), (10, 10), (480, 993)]:
        expected = stats.binomtest(successes, total).proportion_ci(method="wilson")
        assert proportion_interval(successes, total) == pytest.approx((successes / total, *expected), abs=1e-9)
    assert all(map(math.isnan, proportion_interval(0, 0)))


def test_mean_interval_is_students() -> None:
    values = np.random.default_rng(0).gamma(2, size=7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((values.mean(), expected.low, expected.high))
    alone = mean_interval([2.0])
    assert alone.mean == 2.0 and math.isnan(alone.low) and math.isnan(alone.high)
    assert all(map(math.isnan, mean_interval([])))
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_unpaired_difference_is_welchs() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(1, 1, size=3), rng.normal(0, 3, size=5)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert unpaired_difference(a, b) == pytest.approx((a.mean() - b.mean(), expected.low, expected.high))
    assert math.isnan(unpaired_difference([1.0], [2.0, 3.0]).low)


def test_rate_interval_counts_prompts_that_differ() -> None:
    # Success rates of 30 prompts that differ, from 8 samples each: the trials are not independent.
    rng = np.random.default_rng(1)
    hits = clustered = 0
    for _ in range(400):
        rates = rng.binomial(8, rng.beta(0.6, 1.4, size=30)) / 8
        low, high = rate_interval(rates, 8)[1:]
        hits += low <= 0.3 <= high
        _, naive_low, naive_high = proportion_interval(rates.sum() * 8, 240)
        clustered += high - low > naive_high - naive_low
    assert hits >= 360  # 0.95 expected
    assert clustered == 400, "prompts that differ widen the interval"
    assert rate_interval([0.25], 8) == proportion_interval(2, 8)
    none = rate_interval([0.0] * 20, 8)
    assert (none.mean, none.low) == (0, 0) and 0.015 < none.high < 0.03, "160 rejected samples leave little room"


def test_ratio_interval() -> None:
    rng = np.random.default_rng(2)
    bottom = rng.integers(1, 9, size=200).astype(float)
    top = 0.4 * bottom + rng.normal(0, 0.5, size=200)
    interval = ratio_interval(top, bottom)
    ratio = top.sum() / bottom.sum()
    half = 1.96 * np.std(top - ratio * bottom) / bottom.mean() / math.sqrt(200)  # delta method
    assert interval == pytest.approx((ratio, ratio - half, ratio + half), abs=0.15 * half)
    assert ratio_interval([*top, 50.0], [*bottom, 0.0]).mean == pytest.approx((top.sum() + 50) / bottom.sum())
    assert ratio_interval([1.0, 2.0], [2.0, 4.0]) == (0.5, 0.5, 0.5)
    assert interval == ratio_interval(top, bottom) != ratio_interval(top, bottom, seed=1)


def test_paired_difference_removes_what_prompts_share() -> None:
    rng = np.random.default_rng(3)
    difficulty = rng.normal(size=100)
    a, b = difficulty + 0.2 + rng.normal(0, 0.1, size=100), difficulty + rng.normal(0, 0.1, size=100)
    interval = paired_difference(a, b)
    assert interval.mean == pytest.approx(a.mean() - b.mean())
    assert 0.1 < interval.low < 0.2 < interval.high < 0.3
    assert interval.high - interval.low < (mean_interval(a).high - mean_interval(a).low) / 4
