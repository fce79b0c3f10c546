"""Oracles over token sequences, as finite automata, for worlds small enough to be exact.

Axes: S states, V tokens, B sequences, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from dinado.errors import OracleError
from dinado.oracles.oracle import Oracle
from dinado.prompt import Prompt

EOS = 0
"""The token that ends a sequence; automata do not read it."""


@dataclass(frozen=True, eq=False)
class TokenDFA:
    """A deterministic finite automaton over the tokens 1 .. V - 1.

    Attributes:
        transitions_SV: int64, ``transitions_SV[s, v]`` is the state after reading v in s; the column of the
            end-of-sequence token leads back to s, so that padding with it changes nothing.
        start: the state of the empty sequence.
        accepting_S: bool, the states in which a sequence may end.
    """

    transitions_SV: Tensor
    start: int
    accepting_S: Tensor

    @property
    def num_states(self) -> int:
        return self.transitions_SV.shape[0]

    @property
    def num_tokens(self) -> int:
        """The vocabulary size V, the end-of-sequence token included."""
        return self.transitions_SV.shape[1]

    @property
    def is_empty(self) -> bool:
        """Whether the automaton accepts no sequence."""
        return not bool((self._reachable() & self.accepting_S).any())

    def accepts(self, tokens_BT: Tensor) -> Tensor:
        """Tell whether each sequence is accepted, up to its first end-of-sequence token or T tokens; bool [B]."""
        return self.accepting_S[self.final_state(tokens_BT)]

    def final_state(self, tokens_BT: Tensor) -> Tensor:
        """Return the state in which each sequence ends; int64 [B]."""
        state_B = torch.full((tokens_BT.shape[0],), self.start)
        ended_BT = (tokens_BT == EOS).cumsum(dim=1) > 0
        for token_B in tokens_BT.masked_fill(ended_BT, EOS).unbind(dim=1):
            state_B = self.transitions_SV[state_B, token_B]
        return state_B

    def product(self, other: TokenDFA) -> TokenDFA:
        """Return the smallest automaton that accepts the sequences that both accept."""
        assert self.num_tokens == other.num_tokens, f"{self.num_tokens} and {other.num_tokens} tokens"
        pairs_SSV = self.transitions_SV[:, None] * other.num_states + other.transitions_SV[None, :]
        return TokenDFA(
            transitions_SV=pairs_SSV.flatten(0, 1),
            start=self.start * other.num_states + other.start,
            accepting_S=(self.accepting_S[:, None] & other.accepting_S[None, :]).flatten(),
        ).minimal()

    def minimal(self) -> TokenDFA:
        """Return the smallest automaton for the same language: unreachable states dropped, equivalent ones merged.

        This is Moore's refinement; the numbering of states depends on the language alone.
        """
        kept_S = self._reachable().nonzero().squeeze(1)
        renumbered_S = torch.full((self.num_states,), -1).index_put((kept_S,), torch.arange(len(kept_S)))
        transitions_SV = renumbered_S[self.transitions_SV[kept_S]]
        accepting_S = self.accepting_S[kept_S]
        class_S, previous = torch.unique(accepting_S, return_inverse=True)[1], 0
        while (num_classes := int(class_S.max()) + 1) > previous:
            previous = num_classes
            signature_SV = torch.cat([class_S[:, None], class_S[transitions_SV]], dim=1)
            class_S = torch.unique(signature_SV, dim=0, return_inverse=True)[1]
        member_C = torch.zeros(num_classes, dtype=torch.long).index_put((class_S,), torch.arange(len(class_S)))
        return TokenDFA(
            transitions_SV=class_S[transitions_SV[member_C]],
            start=int(class_S[renumbered_S[self.start]]),
            accepting_S=accepting_S[member_C],
        )

    def distance(self) -> Tensor:
        """Return the fewest tokens from each state to an accepting one, int64 [S]; S where none can be reached."""
        distance_S = torch.where(self.accepting_S, 0, self.num_states)
        for _ in range(self.num_states):
            distance_S = torch.minimum(distance_S, distance_S[self.transitions_SV].amin(1) + 1)
        return distance_S

    def _reachable(self) -> Tensor:
        reached_S = torch.zeros(self.num_states, dtype=torch.bool)
        frontier = torch.tensor([self.start])
        while len(frontier):
            reached_S[frontier] = True
            following = self.transitions_SV[frontier].unique()
            frontier = following[~reached_S[following]]
        return reached_S


def token_dfa(
    num_tokens: int, required: Sequence[int] = (), avoided: Sequence[int] = (), ends_with: int | None = None
) -> TokenDFA:
    """Return the smallest automaton of the sequences that obey all constraints.

    Args:
        num_tokens: V, the end-of-sequence token 0 included.
        required: tokens that must all occur.
        avoided: tokens that must not occur.
        ends_with: the token that must come last.

    Raises:
        OracleError: a token is not one of 1 .. V - 1, or the constraints contradict each other.
    """
    ending = () if ends_with is None else (ends_with,)
    for key, tokens in (("required", required), ("avoided", avoided), ("ends_with", ending)):
        for token in tokens:
            if not 0 < token < num_tokens:
                raise OracleError(
                    f"task.{key} holds token {token}; tokens are 1 to {num_tokens - 1}, {EOS} ends a text"
                )
    parts = [_occurs(num_tokens, token, accepted=True) for token in required]
    parts += [_occurs(num_tokens, token, accepted=False) for token in avoided]
    parts += [_comes_last(num_tokens, token) for token in ending]
    anything = TokenDFA(torch.zeros(1, num_tokens, dtype=torch.long), 0, torch.tensor([True]))
    dfa = reduce(TokenDFA.product, parts, anything)
    if dfa.is_empty:
        both = sorted({*required, *ending} & set(avoided))
        raise OracleError(f"no text can satisfy the task: token {both[0]} is both asked for and in task.avoided")
    return dfa


def _occurs(num_tokens: int, token: int, accepted: bool) -> TokenDFA:
    """Return an automaton that is in state 1 once the token has been read."""
    transitions_SV = torch.arange(2)[:, None].repeat(1, num_tokens)
    transitions_SV[:, token] = 1
    return TokenDFA(transitions_SV, 0, torch.tensor([not accepted, accepted]))


def _comes_last(num_tokens: int, token: int) -> TokenDFA:
    """Return an automaton that is in state 1 while the token is the last one read."""
    transitions_SV = torch.zeros(2, num_tokens, dtype=torch.long)
    transitions_SV[:, token] = 1
    transitions_SV[:, EOS] = torch.arange(2)
    return TokenDFA(transitions_SV, 0, torch.tensor([False, True]))


class TokenOracle(Oracle):
    """An oracle that gives 1 if the automaton accepts the text, else 0.

    Texts are token ids separated by spaces, ``"3 7 1"``; an end-of-sequence token and the tokens after it are
    ignored.
    """

    def __init__(self, dfa: TokenDFA) -> None:
        self.dfa = dfa

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return self.dfa.accepts(self._tokens(texts))

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        """Return 1 where the automaton accepts, and less the more tokens it still needs."""
        distance_S = self.dfa.distance()
        left_B = distance_S[self.dfa.final_state(self._tokens(texts))]
        farthest = int(distance_S[distance_S < self.dfa.num_states].max())
        return torch.where(left_B > farthest, 0.0, 1 - left_B / (farthest + 1))

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        sequences = [[int(token) for token in text.split()] for text in texts]
        tokens_BT = torch.full((len(texts), max(map(len, sequences))), EOS)
        for row_T, sequence in zip(tokens_BT, sequences, strict=True):
            if not all(0 <= token < self.dfa.num_tokens for token in sequence):
                raise ValueError(f"a token is not one of 0 to {self.dfa.num_tokens - 1}")
            row_T[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        return tokens_BT
