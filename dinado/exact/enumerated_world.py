"""The exact world of any small base: every prefix is enumerated, so nothing is estimated.

The index of a prefix's node is the prefix read as a number in base V-1 (token v is the digit v-1).
Axes: N sequences, T tokens, V vocabulary, M nodes of a layer, (V-1)^i of them after i tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dinado.errors import ConfigError
from dinado.exact.world import CHUNK, ExactWorld, KlEstimate, Layer, LogProbFn, causal_lm_rows
from dinado.oracles.tokens import EOS, TokenDFA

MAX_PREFIXES = 300_000
"""Largest number of open prefixes that is enumerated; each costs three float64 rows over the vocabulary."""


class EnumeratedWorld(ExactWorld):
    """The exact world of a base that may read its whole prefix.

    Args:
        log_p_fn: the base's next-token log-probabilities.
        vocab_size: V, the end token (id 0) included.
        length: T, the maximum number of tokens of a response.
        dfa: the oracle, over the same vocabulary.

    Raises:
        ConfigError: there are too many prefixes to enumerate, or no response satisfies the oracle.
    """

    def __init__(self, log_p_fn: LogProbFn, vocab_size: int, length: int, dfa: TokenDFA) -> None:
        assert dfa.num_tokens == vocab_size, "the automaton reads another vocabulary"
        self.num_prefixes = sum((vocab_size - 1) ** i for i in range(length))
        if self.num_prefixes > MAX_PREFIXES:
            raise ConfigError(
                f"task.vocab_size={vocab_size} and task.length={length} give {self.num_prefixes:,} prefixes, more than "
                f"{MAX_PREFIXES:,} to enumerate; lower one of them, e.g. to 6 and 6"
            )
        log_p = tabulate(log_p_fn, vocab_size, length)
        layers = []
        state_M = torch.tensor([dfa.start])
        for i in range(length):
            first_child_M1 = torch.arange(len(state_M))[:, None] * (vocab_size - 1)
            child_MV = first_child_M1 + (torch.arange(vocab_size) - 1).clamp(min=0)
            layers.append(Layer(log_p[i], child_MV, self._log_accept(dfa, state_M)))
            state_M = dfa.transitions_SV[state_M, EOS + 1 :].flatten()
        super().__init__(layers, self._log_accept(dfa, state_M), root=0)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        length: int,
        dfa: TokenDFA,
        temperature: float = 1.0,
        prompt_ids: Sequence[int] = (EOS,),
    ) -> EnumeratedWorld:
        """Build the world whose base is a causal transformers model after one prompt."""
        return cls(causal_lm_rows(model, prompt_ids, temperature), model.config.vocab_size, length, dfa)

    @staticmethod
    def _log_accept(dfa: TokenDFA, state_M: Tensor) -> Tensor:
        return torch.where(dfa.accepting_S[state_M], 0.0, -torch.inf).double()

    def kl_to_optimum(self, log_q_fn: LogProbFn, num_samples: int, generator: torch.Generator) -> KlEstimate:
        """Compute KL(q*||q) exactly, without sampling; ``num_samples`` and ``generator`` have no effect.

        Raises:
            ValueError: ``log_q_fn`` returns rows that do not sum to one.
        """
        kl = self._kl(self._log_q, tabulate(log_q_fn, self.vocab_size, self.length))
        return KlEstimate(mean=kl, standard_error=0.0, num_prefixes=self.num_prefixes, exhaustive=True)

    def kl_from_base(self, log_q_fn: LogProbFn) -> float:
        """Compute KL(q||p), the cost of control, exactly."""
        return self._kl(tabulate(log_q_fn, self.vocab_size, self.length), self._log_p)

    def success_of(self, log_q_fn: LogProbFn) -> float:
        """Compute the share of the responses of q that satisfy the oracle, exactly."""
        return self._success(tabulate(log_q_fn, self.vocab_size, self.length))


def tabulate(log_q_fn: LogProbFn, vocab_size: int, length: int) -> list[Tensor]:
    """Compute ``log_q_MV`` of every open prefix, one table for each prefix length 0 .. T-1.

    The longest prefixes contain all shorter ones, so the function is called for the longest alone.
    """
    branching = vocab_size - 1
    num_longest = branching ** (length - 1)
    place_T = torch.tensor([branching**i for i in reversed(range(length - 1))], dtype=torch.long)
    tables = [torch.empty(branching**i, vocab_size, dtype=torch.float64) for i in range(length)]
    for index_N in torch.arange(num_longest).split(CHUNK):
        digits = index_N[:, None] // place_T % branching
        tokens_NT = torch.cat([digits + 1, torch.full((len(index_N), 1), EOS)], 1)
        log_q_NTV = log_q_fn(tokens_NT, torch.full((len(index_N),), length - 1)).double().cpu()
        for i, table_MV in enumerate(tables):
            table_MV[index_N // branching ** (length - 1 - i)] = log_q_NTV[:, i]
    return tables
