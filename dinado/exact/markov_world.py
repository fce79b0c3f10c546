"""The exact world of an order-1 Markov base: a dynamic programme over position, last token and automaton state.

Axes: N sequences, T tokens, V vocabulary (next token), L last token (V of them), S automaton states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinado.bases.markov import MarkovForCausalLM
from dinado.exact.world import CHUNK, ExactWorld, KlEstimate, Layer, LogProbFn, token_kl
from dinado.oracles.tokens import EOS, TokenDFA


class MarkovWorld(ExactWorld):
    """The exact world of an order-1 Markov base, at any length; a node is a pair (last token, automaton state).

    Args:
        log_p_LV: log transition probabilities of the base.
        length: T, the maximum number of tokens of a response.
        dfa: the oracle, over the same vocabulary.
        prompt_token: the last token of the prompt, from whose row y_1 is drawn.

    Raises:
        ConfigError: no response satisfies the oracle.
    """

    def __init__(self, log_p_LV: Tensor, length: int, dfa: TokenDFA, prompt_token: int = EOS) -> None:
        vocab_size, num_states = len(log_p_LV), dfa.num_states
        assert dfa.num_tokens == vocab_size, "the automaton reads another vocabulary"
        log_accept_LS = torch.where(dfa.accepting_S, 0.0, -torch.inf).double().expand(vocab_size, -1)
        child_LSV = (torch.arange(vocab_size) * num_states + dfa.transitions_SV).expand(vocab_size, -1, -1)
        layer = Layer(
            log_p_MV=log_p_LV.double().cpu().repeat_interleave(num_states, 0),
            child_MV=child_LSV.flatten(0, 1),
            log_accept_M=log_accept_LS.flatten(),
        )
        super().__init__([layer] * length, layer.log_accept_M, prompt_token * num_states + dfa.start)

    @classmethod
    def from_model(
        cls, model: MarkovForCausalLM, length: int, dfa: TokenDFA, temperature: float = 1.0, prompt_token: int = EOS
    ) -> MarkovWorld:
        """Build the world whose base is ``softmax(model's logits / temperature)``."""
        log_p_LV = (model.lm_head.weight.detach().T.double() / temperature).log_softmax(-1)
        return cls(log_p_LV, length, dfa, prompt_token)

    def kl_to_optimum(self, log_q_fn: LogProbFn, num_samples: int, generator: torch.Generator) -> KlEstimate:
        """Estimate KL(q*||q) by Monte Carlo over ``num_samples`` sequences of q*; the KL at each step is exact.

        Raises:
            ValueError: ``log_q_fn`` returns rows that do not sum to one.
        """
        tokens_NT, lengths_N = self.pad(self.sample_optimal(num_samples, generator))
        used_NT = torch.arange(self.length) < lengths_N[:, None]
        kl_N = torch.cat(
            [
                token_kl(self.rows(tokens).log_q_NTV, log_q_fn(tokens, lengths).double().cpu(), used).sum(-1)
                for tokens, lengths, used in zip(
                    tokens_NT.split(CHUNK), lengths_N.split(CHUNK), used_NT.split(CHUNK), strict=True
                )
            ]
        )
        return KlEstimate(
            mean=float(kl_N.mean()),
            standard_error=float(kl_N.std() / num_samples**0.5),
            num_prefixes=int(used_NT.sum()),
            exhaustive=False,
        )

    def kl_to_tabular(self, log_q_TLSV: Tensor) -> float:
        """Compute KL(q*||q) exactly, for a q that depends on position, last token and automaton state only."""
        return self._kl(self._log_q, list(log_q_TLSV.double().flatten(1, 2)))
