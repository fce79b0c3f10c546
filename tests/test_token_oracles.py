"""Automata over tokens against enumeration of all sequences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from dinado.errors import OracleError
from dinado.oracles import Oracle, TokenDFA, TokenOracle, token_dfa
from dinado.prompt import Prompt

PROMPTS = [Prompt(f"p{i}", f"request {i}") for i in range(2)]


def scores_of(oracle: Oracle, texts: Sequence[str]) -> list[float]:
    return oracle([PROMPTS[0]] * len(texts), texts).tolist()


V, T = 5, 5
ALL_SEQUENCES = list(itertools.product(range(V), repeat=T))


def obeys(sequence: Sequence[int], required: Sequence[int], avoided: Sequence[int], ends_with: int | None) -> bool:
    """Membership by definition."""
    text = list(itertools.takewhile(lambda token: token != 0, sequence))
    return (
        all(token in text for token in required)
        and not any(token in text for token in avoided)
        and (ends_with is None or text[-1:] == [ends_with])
    )


CONSTRAINTS = [
    ([], [], None),
    ([1], [], None),
    ([1, 3], [], None),
    ([1, 2, 4], [], None),
    ([], [2], None),
    ([], [1, 2, 3, 4], None),
    ([], [], 3),
    ([1, 1], [2, 3], None),
    ([1, 2], [4], 2),
    ([1, 2], [4], 3),
]


@pytest.mark.parametrize(("required", "avoided", "ends_with"), CONSTRAINTS)
def test_automata_against_enumeration(required: list[int], avoided: list[int], ends_with: int | None) -> None:
    dfa = token_dfa(V, required, avoided, ends_with)
    expected = [obeys(sequence, required, avoided, ends_with) for sequence in ALL_SEQUENCES]
    assert dfa.accepts(torch.tensor(ALL_SEQUENCES)).tolist() == expected
    assert dfa.transitions_SV[:, 0].tolist() == list(range(dfa.num_states)), "end of sequence keeps the state"
    texts = [" ".join(map(str, sequence)) for sequence in ALL_SEQUENCES]
    assert scores_of(TokenOracle(dfa), texts) == expected

    # Myhill-Nerode: as many states as prefixes that some continuation tells apart.
    tokens = range(1, V)
    short = [s for n in range(4) for s in itertools.product(tokens, repeat=n)]
    residuals = {tuple(obeys((*prefix, *s), required, avoided, ends_with) for s in short) for prefix in short}
    assert dfa.num_states == len(residuals)


def test_equal_languages_have_equal_automata() -> None:
    one, other = token_dfa(V, required=[1, 3], avoided=[2]), token_dfa(V, required=[3, 1, 3], avoided=[2, 2])
    assert torch.equal(one.transitions_SV, other.transitions_SV) and one.start == other.start
    assert TokenOracle(one).fingerprint == TokenOracle(other).fingerprint


def test_an_automaton_of_everything_or_nothing_has_one_state() -> None:
    transitions_SV = torch.tensor([[0, 1, 1], [1, 0, 0]])
    everything = TokenDFA(transitions_SV, 0, torch.tensor([True, True])).minimal()
    nothing = TokenDFA(transitions_SV, 0, torch.tensor([False, False])).minimal()
    assert (everything.num_states, everything.is_empty) == (1, False)
    assert (nothing.num_states, nothing.is_empty) == (1, True)


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        ({"required": [5]}, r"task\.required holds token 5; tokens are 1 to 4"),
        ({"avoided": [0]}, r"task\.avoided holds token 0"),
        ({"ends_with": -1}, r"task\.ends_with holds token -1"),
        ({"required": [2, 3], "avoided": [1, 3]}, "token 3 is both"),
        ({"ends_with": 2, "avoided": [2]}, "token 2 is both"),
    ],
)
def test_impossible_automata(constraint: dict, says: str) -> None:
    with pytest.raises(OracleError, match=says):
        token_dfa(V, **constraint)


def test_token_texts() -> None:
    oracle = TokenOracle(token_dfa(V, required=[3], ends_with=1))
    assert scores_of(oracle, ["3 1", "3 1 0 4", "", "1", "3 1 2", " 2  3\n1 "]) == [1, 1, 0, 0, 0, 1]
    for text, says in [("1 x", "ValueError: .*'x'"), ("1 5", "not one of 0 to 4"), ("-1", "not one of 0 to 4")]:
        with pytest.raises(
            OracleError, match=rf"prompt 'p1', text '{text}': .*{says}|prompt 'p1', text '{text}': {says}"
        ):
            oracle(PROMPTS[:2], ["3 1", text])
