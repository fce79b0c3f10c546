"""The exact world: q*(y) = p(y) C(y) / R for every response of at most T tokens, by one backward recursion.

A response is y_1 .. y_L, ended by EOS with fewer than T tokens before it, or cut off at T tokens without EOS.
Both are complete outcomes, and a finite automaton (the oracle C) judges the tokens before EOS.

All prefixes of one length are grouped into *nodes* that share their future: the distribution of the base's next tokens
and the tokens that the automaton still needs. A world consists of T layers of nodes and is computed by

    R(node) = sum_v p(v | node) R(child(node, v)),        q*(v | node) = p(v | node) R(child) / R(node).

in float64 log space on the CPU. Axes: N sequences, T tokens, V vocabulary, M nodes of a layer (each layer has its own
M).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dinado.errors import ConfigError
from dinado.oracles.tokens import EOS

LogProbFn = Callable[[Tensor, Tensor], Tensor]
"""``(tokens_NT, lengths_N) -> log_q_NTV``: row i holds next-token log-probabilities after the first i tokens,
0 <= i < T. ``tokens_NT`` is padded on the right with EOS; rows i > length are ignored, and so is row ``length`` when
the sequence has ended."""

CHUNK = 4096
"""Number of sequences per call of a :data:`LogProbFn`."""


@dataclass(frozen=True)
class KlEstimate:
    """KL(q*||q) in nats per sequence.

    Attributes:
        mean: the value, or its Monte-Carlo mean.
        standard_error: standard error of the mean; 0 when ``exhaustive``.
        num_prefixes: number of prefixes at which the two next-token distributions were compared.
        exhaustive: whether every prefix was visited, so that ``mean`` is exact.
    """

    mean: float
    standard_error: float
    num_prefixes: int
    exhaustive: bool


@dataclass(frozen=True)
class Layer:
    """All prefixes of one length, by node: the base's ``log_p_MV``, each token's child, and log C if EOS comes next."""

    log_p_MV: Tensor
    child_MV: Tensor
    log_accept_M: Tensor


@dataclass(frozen=True)
class Rows:
    """Base log-probabilities and values along sequences; rows after the end of a sequence are undefined.

    Attributes:
        log_p_NTV: base log-probability of token v after the first i tokens.
        log_r_NTV: log R of the prefix extended by v; log C (0 or -inf) where that completes the response.
    """

    log_p_NTV: Tensor
    log_r_NTV: Tensor

    @property
    def log_q_NTV(self) -> Tensor:
        """The optimum's next-token log-probabilities; -inf throughout where no continuation can succeed."""
        return normalise(self.log_p_NTV + self.log_r_NTV)


class ExactWorld(abc.ABC):
    """A base model, a horizon and an oracle whose optimum is known.

    Args:
        layers: one per prefix length 0 .. T-1.
        final_log_accept_M: log C of the responses cut off at T tokens, by node.
        root: the node of the empty prefix in the first layer.

    Raises:
        ConfigError: no response of at most T tokens satisfies the oracle, so there is no optimum.
    """

    def __init__(self, layers: Sequence[Layer], final_log_accept_M: Tensor, root: int) -> None:
        self.layers = list(layers)
        self.length = len(self.layers)
        self.vocab_size = self.layers[0].log_p_MV.shape[1]
        self.root = root
        self._final_log_accept_M = final_log_accept_M
        self._log_r: list[Tensor] = []
        log_value_M = final_log_accept_M
        for layer in reversed(self.layers):
            log_r_MV = log_value_M[layer.child_MV]
            log_r_MV[:, EOS] = layer.log_accept_M
            self._log_r.insert(0, log_r_MV)
            log_value_M = (layer.log_p_MV + log_r_MV).logsumexp(-1)
        self.log_success = float(log_value_M[root])
        if self.log_success == -torch.inf:
            raise ConfigError(
                f"no response of at most {self.length} tokens satisfies the oracle; raise task.length or ask for less"
            )

    @property
    def success_rate(self) -> float:
        """R of the empty prefix: the share of base responses that satisfy the oracle."""
        return float(torch.tensor(self.log_success, dtype=torch.float64).exp())

    @property
    def kl_base(self) -> float:
        """KL(q*||p) = -log R, the distance that control has to cover."""
        return -self.log_success

    @abc.abstractmethod
    def kl_to_optimum(self, log_q_fn: LogProbFn, num_samples: int, generator: torch.Generator) -> KlEstimate:
        """Compute KL(q*||q): the exact token-level KL, summed over positions and averaged over prefixes from q*."""

    def pad(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return ``(tokens_NT, lengths_N)`` of prefixes or responses, padded on the right with EOS.

        Raises:
            ValueError: a sequence has more than T tokens, a token outside the vocabulary, or a token after EOS.
        """
        tokens_NT = torch.full((len(sequences), self.length), EOS)
        for row, tokens in enumerate(sequences):
            if len(tokens) > self.length or EOS in tokens[:-1] or not all(0 <= v < self.vocab_size for v in tokens):
                raise ValueError(f"{list(tokens)} is not a prefix of a response of {self.length} tokens")
            tokens_NT[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        return tokens_NT, torch.tensor([len(tokens) for tokens in sequences], dtype=torch.long)

    def rows(self, tokens_NT: Tensor) -> Rows:
        """Return base log-probabilities and values after every prefix of the given (padded) sequences."""
        node_N = torch.full((tokens_NT.shape[0],), self.root)
        log_p, log_r = [], []
        for i, layer in enumerate(self.layers):
            log_p.append(layer.log_p_MV[node_N])
            log_r.append(self._log_r[i][node_N])
            node_N = layer.child_MV[node_N, tokens_NT[:, i]]
        return Rows(torch.stack(log_p, 1), torch.stack(log_r, 1))

    def value(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        """Return ``log_R_N`` of prefixes; for a complete response it is log C, 0 or -inf."""
        tokens_NT, lengths_N = self.pad(prefixes)
        log_r_NT = self.rows(tokens_NT).log_r_NTV.gather(-1, tokens_NT[..., None])[..., 0]
        root_N1 = torch.full((len(prefixes), 1), self.log_success, dtype=torch.float64)
        return torch.cat([root_N1, log_r_NT], 1).gather(1, lengths_N[:, None])[:, 0]

    def next_log_values(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        """Return ``log_R_NV`` of each open prefix extended by each token."""
        return self._next(prefixes, lambda rows: rows.log_r_NTV)

    def base_log_p(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        """Return ``log_p_NV``, the base's next-token log-probabilities after each open prefix."""
        return self._next(prefixes, lambda rows: rows.log_p_NTV)

    def optimal_log_q(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        """Return ``log_q_NV`` of the optimum after each open prefix; all -inf where no continuation can succeed."""
        return self._next(prefixes, lambda rows: rows.log_q_NTV)

    def sample_optimal(self, n: int, generator: torch.Generator) -> list[list[int]]:
        """Draw ``n`` independent exact samples from q*; EOS is included where the response ended."""
        tokens_NT = torch.full((n, self.length), EOS)
        lengths_N = torch.zeros(n, dtype=torch.long)
        alive_A = torch.arange(n)
        node_A = torch.full((n,), self.root)
        for i, (layer, log_q_MV) in enumerate(zip(self.layers, self._log_q, strict=True)):
            if len(alive_A) == 0:
                break
            token_A = torch.multinomial(log_q_MV[node_A].exp(), 1, generator=generator)[:, 0]
            tokens_NT[alive_A, i] = token_A
            lengths_N[alive_A] += 1
            going_A = token_A != EOS
            node_A = layer.child_MV[node_A, token_A][going_A]
            alive_A = alive_A[going_A]
        return [row[:length].tolist() for row, length in zip(tokens_NT, lengths_N.tolist(), strict=True)]

    @cached_property
    def _log_q(self) -> list[Tensor]:
        """The optimum's log-probabilities, layer by layer."""
        return [normalise(layer.log_p_MV + log_r) for layer, log_r in zip(self.layers, self._log_r, strict=True)]

    @cached_property
    def _log_p(self) -> list[Tensor]:
        """The base's log-probabilities, layer by layer."""
        return [layer.log_p_MV for layer in self.layers]

    def _next(self, prefixes: Sequence[Sequence[int]], pick: Callable[[Rows], Tensor]) -> Tensor:
        tokens_NT, lengths_N = self.pad(prefixes)
        if any(len(prefix) == self.length or EOS in prefix for prefix in prefixes):
            raise ValueError("a complete response has no next token")
        return pick(self.rows(tokens_NT))[torch.arange(len(prefixes)), lengths_N]

    def _occupancy(self, log_a: Sequence[Tensor]) -> list[Tensor]:
        """Compute the probability, under the model with rows ``log_a``, of reaching each node of layers 0 .. T."""
        mass_M = torch.zeros(len(self.layers[0].log_accept_M), dtype=torch.float64)
        mass_M[self.root] = 1.0
        masses = [mass_M]
        for i, layer in enumerate(self.layers):
            flow_MV = mass_M[:, None] * log_a[i].exp()
            # A row that is never reached may hold anything, even NaN.
            flow_MV = torch.where(mass_M[:, None] > 0, flow_MV, 0.0)
            size = len(self.layers[i + 1].log_accept_M) if i + 1 < self.length else len(self._final_log_accept_M)
            mass_M = torch.zeros(size, dtype=torch.float64)
            mass_M.index_add_(0, layer.child_MV[:, EOS + 1 :].flatten(), flow_MV[:, EOS + 1 :].flatten())
            masses.append(mass_M)
        return masses

    def _kl(self, log_a: Sequence[Tensor], log_b: Sequence[Tensor]) -> float:
        """Compute KL(a||b) over whole responses of two models given row by row, exactly."""
        masses = self._occupancy(log_a)
        total = 0.0
        for mass_M, log_a_MV, log_b_MV in zip(masses[:-1], log_a, log_b, strict=True):
            kl_M = token_kl(log_a_MV, log_b_MV, mass_M > 0)
            total += float((mass_M * kl_M)[mass_M > 0].sum())
        return total

    def _success(self, log_a: Sequence[Tensor]) -> float:
        """Compute the share of responses of the model with rows ``log_a`` that satisfy the oracle, exactly."""
        masses = self._occupancy(log_a)
        total = float(masses[-1] @ self._final_log_accept_M.exp())
        for mass_M, log_a_MV, layer in zip(masses[:-1], log_a, self.layers, strict=True):
            ended_M = mass_M * (log_a_MV[:, EOS] + layer.log_accept_M).exp()
            total += float(ended_M[mass_M > 0].sum())
        return total


def normalise(log_w: Tensor) -> Tensor:
    """Apply log-softmax over the last axis, leaving a row of -inf unchanged instead of turning it into NaN."""
    total = log_w.logsumexp(-1, keepdim=True)
    return torch.where(total == -torch.inf, log_w, log_w - total)


def token_kl(log_a: Tensor, log_b: Tensor, used: Tensor) -> Tensor:
    """Compute KL(a||b) of next-token distributions ``[..., V] -> [...]``, 0 in rows that are not ``used``.

    Raises:
        ValueError: a used row of either does not sum to one (to 1e-3).
    """
    for log in (log_a, log_b):
        error = (log[used].logsumexp(-1).exp() - 1.0).abs()
        if not (error < 1e-3).all():
            raise ValueError(f"next-token probabilities do not sum to one: off by {float(error.max()):.3g}")
    kl = torch.where(log_a > -torch.inf, log_a.exp() * (log_a - log_b), 0.0).sum(-1)
    return torch.where(used, kl, 0.0)


def causal_lm_rows(model: PreTrainedModel, prompt_ids: Sequence[int], temperature: float = 1.0) -> LogProbFn:
    """Return the :data:`LogProbFn` of a causal transformers model after one prompt, in float64 on the CPU."""

    @torch.no_grad()
    def log_q_fn(tokens_NT: Tensor, lengths_N: Tensor) -> Tensor:
        prompt_NP = torch.tensor([list(prompt_ids)]).expand(len(tokens_NT), -1)
        # Padding is on the right, where a causal model's earlier rows cannot see it.
        ids = torch.cat([prompt_NP, tokens_NT[:, :-1]], 1).to(model.device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return (logits[:, len(prompt_ids) - 1 :].double().cpu() / temperature).log_softmax(-1)

    return log_q_fn
