"""Progress: what oracles say about unfinished texts, and how rollouts are looked into with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from torch import Tensor

from dinado.errors import OracleError
from dinado.oracles import LengthOracle, LexicalOracle, Oracle, RegexOracle
from dinado.oracles.tokens import TokenOracle, token_dfa
from dinado.prompt import Prompt
from dinado.rollouts.continuations import Lookahead, look_ahead

PROMPT = Prompt("p", "")


class Counts(Oracle):
    """Progress by length, 0.7 for anything finished; remembers what it was asked."""

    def __init__(self) -> None:
        self.unfinished: list[str] = []
        self.finished: list[str] = []

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        self.finished += texts
        return [0.7 for _ in texts]

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        self.unfinished += texts
        return [len(text) / 10 for text in texts]


def decode(tokens: Sequence[int]) -> str:
    return "".join("?ab "[token] if token else "" for token in tokens).strip()


def looked(oracle: Oracle, judge_truncated: bool, tokens: Sequence[int] = (1, 2, 0)) -> Lookahead:
    """Candidates a, b and the end after nothing, a and ab; the third token is the last."""
    candidate_TK = np.tile(np.array([1, 2, 0], dtype=np.int32), (3, 1))
    log_p_TK = np.zeros((3, 3), dtype=np.float32)
    options = dict(eos_ids=[0], max_new_tokens=3, judge_truncated=judge_truncated)
    return look_ahead(oracle, PROMPT, tokens, candidate_TK, log_p_TK, decode, **options)  # type: ignore[arg-type]


def test_every_beginning_and_candidate_is_judged_and_no_text_twice() -> None:
    oracle = Counts()
    found = looked(oracle, judge_truncated=True)
    assert sorted(oracle.unfinished) == ["", "a", "aa", "ab", "b"]
    assert sorted(oracle.finished) == ["", "a", "ab", "aba", "abb"]
    assert found.progress_T == pytest.approx([0, 0.1, 0.2])
    assert found.outlook_TK == pytest.approx(np.array([[0.1, 0.1, 0.7], [0.2, 0.2, 0.7], [0.7, 0.7, 0.7]]))


def test_a_candidate_that_exhausts_the_budget_has_failed() -> None:
    assert looked(Counts(), judge_truncated=False).outlook_TK[2] == pytest.approx([0, 0, 0.7])


def test_progress_outside_the_range_names_prompt_and_text() -> None:
    class Wild(Counts):
        def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
            return [1.1 if text == "ab" else 0.0 for text in texts]

    with pytest.raises(OracleError, match=r"Wild returned 1\.1 for prompt 'p', text 'ab'"):
        looked(Wild(), judge_truncated=False)


def progress(oracle: Oracle, text: str, **data: object) -> float:
    return float(oracle.checked_progress([Prompt("p", "", data)], [text]))


def test_progress_of_the_built_in_oracles() -> None:
    lexical, regex, length = LexicalOracle(), RegexOracle("a+b"), LengthOracle(min_words=4, max_words=5)
    concepts = ["dog", "run", "park"]
    assert progress(lexical, "The dogs", concepts=concepts) == pytest.approx(1 / 3)
    assert progress(lexical, "The dogs ran in a par", concepts=concepts) == pytest.approx(2 / 3 + 3 / 4 / 3)
    assert progress(lexical, "The dogs ran in a park.", concepts=concepts) == 1
    assert [progress(regex, text) for text in ("aa", "aab")] == [0, 1]  # judged as if it were finished
    assert [progress(length, "w " * n) for n in (0, 1, 4, 5, 6)] == [0, 0.25, 1, 1, 0]
    assert progress(LengthOracle(max_words=2), "one two three") == 0
    assert progress(lexical & length, "The dogs", concepts=concepts) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert progress(regex | length, "aab") == 1
    assert progress(~regex, "aab") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A fris", 4 / 7 / 2),  # letters of frisbee
        ("A fris ", 0),  # a word of its own
        ("A fr", 0),  # too short to tell
        ("A frisbee ice", (1 + 1 / 2) / 2),  # one word of two, and not the whole
        ("A frisbee fris", 1 / 2),  # found already
    ],
)
def test_a_word_that_the_text_breaks_off_in_counts_by_its_letters(text: str, expected: float) -> None:
    assert progress(LexicalOracle(["frisbee", "ice cream"]), text) == pytest.approx(expected)


def test_progress_of_an_automaton_falls_with_the_tokens_it_asks_for() -> None:
    oracle = TokenOracle(token_dfa(6, required=[1, 2], avoided=[5]))
    assert [progress(oracle, text) for text in ("", "3", "3 2", "2 1 4")] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])
    assert progress(oracle, "1 5") == 0  # no way back


def reference_distance(transitions_SV: Tensor, accepting_S: Tensor, state: int) -> int:
    """Breadth first."""
    seen, frontier, steps = {state}, {state}, 0
    while frontier:
        if any(bool(accepting_S[s]) for s in frontier):
            return steps
        frontier = {int(t) for s in frontier for t in transitions_SV[s]} - seen
        seen |= frontier
        steps += 1
    return len(accepting_S)


def test_distances_by_search() -> None:
    dfa = token_dfa(7, required=[1, 2, 3], avoided=[5], ends_with=4)
    expected = [reference_distance(dfa.transitions_SV, dfa.accepting_S, s) for s in range(dfa.num_states)]
    assert dfa.distance().tolist() == expected
