"""Oracles: how they compose, what is checked of their scores, and the built-in ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.tasks.configured_oracle import configured_oracle
from dinado.errors import OracleError
from dinado.oracles import (
    LengthOracle,
    LexicalOracle,
    Oracle,
    RegexOracle,
)
from dinado.oracles.inflection import forms
from dinado.prompt import Prompt
from workbench.settings.oracles import OracleConfig

PROMPTS = [Prompt(f"p{i}", f"request {i}") for i in range(4)]
TEXTS = ["red", "green\nish", "blue", "culprit"]


class Table(Oracle):
    """Scores looked up by text."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [self.scores[text] for text in texts]


class Returning(Oracle):
    """Whatever a function of the texts returns."""

    def __init__(self, function: Callable[[Sequence[str]], object]) -> None:
        self.function = function

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]):
        return self.function(texts)


def scores_of(oracle: Oracle, texts: Sequence[str] = TEXTS) -> list[float]:
    return oracle([PROMPTS[0]] * len(texts), texts).tolist()


# ---------------------------------------------------------------- composition

scores = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4)


@settings(max_examples=50, deadline=None)
@given(scores, scores, scores)
def test_composition_laws(a: list[float], b: list[float], c: list[float]) -> None:
    x, y, z = (Table(dict(zip(TEXTS, values, strict=True))) for values in (a, b, c))
    a_N, b_N = torch.tensor(a), torch.tensor(b)
    torch.testing.assert_close((x & y)(PROMPTS, TEXTS), a_N * b_N)
    torch.testing.assert_close((x | y)(PROMPTS, TEXTS), a_N + b_N - a_N * b_N)
    torch.testing.assert_close((~x)(PROMPTS, TEXTS), 1 - a_N)
    assert scores_of(~~x) == a
    for left, right in [
        (x & y, y & x),
        ((x & y) & z, x & (y & z)),
        ((x | y) | z, x | (y | z)),
        (~(x & y), ~x | ~y),
        (~(x | y), ~x & ~y),
    ]:
        torch.testing.assert_close(left(PROMPTS, TEXTS), right(PROMPTS, TEXTS), rtol=0, atol=1e-6)


def test_compositions_of_zero_and_one_are_logic() -> None:
    x, y = Table(dict(zip(TEXTS, [0, 0, 1, 1], strict=True))), Table(dict(zip(TEXTS, [0, 1, 0, 1], strict=True)))
    assert scores_of(x & y) == [0, 0, 0, 1]
    assert scores_of(x | y) == [0, 1, 1, 1]
    assert scores_of(~x) == [1, 1, 0, 0]


def test_composing_with_something_else_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        RegexOracle("a") & (lambda prompts, texts: texts)


# ---------------------------------------------------------------- checks


def fail_on_culprit(texts: Sequence[str]) -> list[float]:
    if "culprit" in texts:
        raise RuntimeError("first line\nsecond line")
    return [1.0] * len(texts)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (fail_on_culprit, "RuntimeError: first line second line"),
        (lambda texts: [0.5, 0.5, 0.5, float("nan")], "returned nan"),
        (lambda texts: torch.tensor([0, 1, 1, 1.5]), "returned 1.5"),
        (lambda texts: [True, False, True, -0.25], "returned -0.25"),
        (lambda texts: [None if text == "culprit" else 1.0 for text in texts], "TypeError"),
    ],
)
def test_a_bad_score_stops_with_its_prompt_and_text(function: Callable, says: str) -> None:
    with pytest.raises(OracleError) as caught:
        Returning(function)(PROMPTS, TEXTS)
    message = str(caught.value)
    assert message.startswith("oracle Returning ")
    assert "prompt 'p3', text 'culprit'" in message and says in message
    assert "\n" not in message


@pytest.mark.parametrize("result", [[1.0] * 3, torch.ones(4, 1), torch.tensor(1.0), 1.0])
def test_a_wrong_number_of_scores(result: object) -> None:
    with pytest.raises(OracleError, match=r"for 4 texts, the first of prompt 'p0', text 'red'"):
        Returning(lambda texts: result)(PROMPTS, TEXTS)


def test_a_failure_of_the_batch_alone_is_said_to_be_one() -> None:
    def function(texts: Sequence[str]) -> list[float]:
        if len(texts) > 1:
            raise MemoryError("too many")
        return [1.0]

    with pytest.raises(OracleError, match=r"on a batch of 4 texts though on none of them alone.*MemoryError: too many"):
        Returning(function)(PROMPTS, TEXTS)


def test_a_failing_part_is_named_rather_than_the_whole() -> None:
    with pytest.raises(OracleError, match=r"^oracle Returning failed on prompt 'p3'"):
        (~(RegexOracle("e") & Returning(fail_on_culprit)))(PROMPTS, TEXTS)


def test_long_texts_are_shortened_and_line_breaks_escaped() -> None:
    text = "line\n" + "x" * 10_000
    with pytest.raises(OracleError) as caught:
        Returning(lambda texts: [2.0])([PROMPTS[0]], [text])
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


def test_rounding_is_forgiven_and_scores_are_plain_float32() -> None:
    parameter = torch.tensor([1 + 1e-7, 0.5], dtype=torch.float64, requires_grad=True)
    result = Returning(lambda texts: parameter * 1)(PROMPTS[:2], TEXTS[:2])
    assert result.dtype == torch.float32 and not result.requires_grad
    assert result.tolist() == [1.0, 0.5]
    assert Returning(lambda texts: [True, False])(PROMPTS[:2], TEXTS[:2]).tolist() == [1.0, 0.0]
    assert Returning(fail_on_culprit)([], []).shape == (0,)


# ---------------------------------------------------------------- built in


@pytest.mark.parametrize(
    ("concepts", "text", "expected"),
    [
        (["dog", "run"], "The DOGS were running.", [True, True]),
        (["cat"], "They scattered.", [False]),
        (["go"], "She went home", [True]),
        (["child"], "two children", [True]),
        (["boy"], "the boy's hat", [True]),
        (["boy"], "the boy\N{RIGHT SINGLE QUOTATION MARK}s hat", [True]),
        (["know"], "a well-known man", [True]),
        (["ice cream", "cream ice"], "Two ice-creams!", [True, False]),
        (["take off"], "it took off; off it goes", [True]),
        (["take off"], "take it off", [False]),
        (["Zyxglorp"], "a zyxglorp, several zyxglorps", [True]),
        (["zyxglorp"], "several zyxglorps", [False]),
        (["don't"], "Don't go", [True]),
        (["look"], "", [False]),
    ],
)
def test_lexical(concepts: list[str], text: str, expected: list[bool]) -> None:
    oracle, prompt = LexicalOracle(), Prompt("p", "", {"concepts": concepts})
    assert oracle.found(prompt, text) == expected
    assert oracle([prompt], [text]).item() == all(expected)
    assert oracle.coverage([prompt] * 2, [text, ""]) == (sum(expected), 2 * len(expected))
    assert LexicalOracle(concepts).found(Prompt("p", ""), text) == expected


def test_forms() -> None:
    assert forms("Stand") == {"stand", "stands", "stood", "standing"}


def test_lexical_without_concepts() -> None:
    with pytest.raises(OracleError, match=r"prompt 'p7' has no `concepts`.*oracle\.words"):
        LexicalOracle()([Prompt("p7", "")], ["text"])
    with pytest.raises(OracleError, match=r"oracle\.words holds '\?\?'"):
        LexicalOracle(["dog", "??"])


def test_lexical_on_human_references(data_root: Path) -> None:
    rows = [json.loads(line) for line in (data_root / "commongen" / "dev.jsonl").read_text().splitlines()]
    prompts, texts = [Prompt(row["id"], "", row) for row in rows], [row["references"][0] for row in rows]
    oracle = LexicalOracle()
    assert oracle.coverage(prompts, texts) == (3721, 3729)
    assert round(100 * oracle(prompts, texts).mean().item(), 2) == 99.30
    shares = [sum(found) / len(found) for found in map(oracle.found, prompts, texts)]
    assert round(100 * sum(shares) / len(shares), 2) == 99.78


def test_regex() -> None:
    assert scores_of(RegexOracle(r"\bred\b"), ["A Red hat", "reddish", "infrared", "red"]) == [1, 0, 0, 1]
    assert scores_of(RegexOracle("red", ignore_case=False), ["Red", "red"]) == [0, 1]
    with pytest.raises(OracleError, match=r"oracle\.pattern '\(' is not a regular expression"):
        RegexOracle("(")


def test_length() -> None:
    texts = ["", "one", "don't - stop !", "a well-known  man\nran"]  # 0, 1, 2 and 4 words
    assert scores_of(LengthOracle(1, 2), texts) == [0, 1, 1, 0]
    assert scores_of(LengthOracle(2), texts) == [0, 0, 1, 1]
    assert scores_of(LengthOracle(max_words=0), texts) == [1, 0, 0, 0]
    with pytest.raises(OracleError, match="accepts every text"):
        LengthOracle()
    with pytest.raises(OracleError, match=r"oracle\.max_words=2 is less than oracle\.min_words=3"):
        LengthOracle(3, 2)


def build_oracle(name: str, task_oracle: Oracle | None, **settings: object) -> Oracle:
    return configured_oracle(OracleConfig(name=name, **settings), task_oracle)  # type: ignore[arg-type]


def test_build_oracle() -> None:
    task_oracle, text = RegexOracle("red"), ["a red dog", "blue"]
    assert build_oracle("task", task_oracle) is task_oracle
    assert scores_of(build_oracle("task", task_oracle, negate=True), text) == [0, 1]
    assert scores_of(build_oracle("regex", task_oracle, pattern="BLUE"), text) == [0, 1]
    assert scores_of(build_oracle("regex", task_oracle, pattern="BLUE", ignore_case=False), text) == [0, 0]
    assert scores_of(build_oracle("lexical", None, words=["dogs", "dog"]), text) == [0, 0]
    assert scores_of(build_oracle("length", None, max_words=2), text) == [0, 1]
    for name, says in [("task", "brings no oracle"), ("user", r"oracle\.function"), ("regex", r"oracle\.pattern")]:
        with pytest.raises(OracleError, match=says):
            build_oracle(name, None)
    with pytest.raises(OracleError, match=r"oracle\.name=sentiment is unknown"):
        build_oracle("sentiment", task_oracle)
