"""Policies: models whose scores are log q - log p, with adapters inside the base or weights of their own.

Axes: B rollouts, T response tokens, N rows, L new positions, V vocabulary, D width.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache

from dinado.bases.causal import BaseLM
from dinado.bases.frozen_states import base_taps, frozen_states, split_taps
from dinado.batch import RolloutBatch
from dinado.objectives.reduction import Head
from dinado.objectives.vocabulary import VocabularyStatistics, token_log_probs, vocabulary_statistics
from dinado.parameters.parameterisation import NOTHING_MORE, Needs, Parameterisation, Scored, VocabularyInputs


class Policy(Parameterisation, ABC):
    """A policy, whose scores are log q - log p.

    Args:
        base: the frozen base.
        policy: the model of the policy: the same BaseLM when it holds adapters, another one for a copy.
    """

    is_policy = True

    def __init__(self, base: BaseLM, policy: BaseLM) -> None:
        super().__init__(base)
        self.policy = policy

    @property
    def own_width(self) -> int:
        """Width of the policy's states."""
        return self.policy.hidden_size

    @property
    def head(self) -> Head:
        """The policy's output head."""
        return self.policy.head

    def forward(self, batch: RolloutBatch, needs: Needs = NOTHING_MORE) -> Scored:
        """Score a batch; gradients reach the policy's trained weights only."""
        base_BTD: Tensor | None = None
        taps: tuple[Tensor, ...] = ()
        of_base, of_policy = ((), needs.taps) if needs.of_policy else (needs.taps, ())
        if needs.maximum or of_base:
            taps, states = base_taps(self.base, batch, of_base)
            base_BTD = states.hidden_BTD
        states = self.policy.states(batch, of_policy, grad=True)
        policy_BTD = states.hidden_BTD
        if of_policy:
            taps, _ = split_taps(states, len(of_policy), batch.prompt_of_row_B)
            taps = tuple(tap.detach() for tap in taps)
        if needs.maximum and base_BTD is not None:
            statistics = vocabulary_statistics(
                base_BTD,
                self.base.head,
                policy_BTD,
                self.head,
                batch.response_BT,
                batch.response_mask_BT,
                "log_ratio",
                support=needs.support,
                candidate_BTK=batch.candidate_BTK,
            )
        else:
            statistics = self._without_base(policy_BTD, batch)
        return Scored(statistics, taps, policy_BTD)

    def log_q(self, batch: RolloutBatch) -> Tensor:
        """Compute the log-probability of each response token under the policy; the base does not run."""
        policy_BTD = self.policy.states(batch, grad=True).hidden_BTD
        return token_log_probs(policy_BTD, self.head, batch.response_BT[..., None], batch.response_mask_BT)[..., 0]

    def vocabulary_inputs(self, batch: RolloutBatch) -> VocabularyInputs:
        """Compute the states of base and policy, whose scores are log q - log p."""
        base_BTD = frozen_states(self.base, batch, ()).hidden_BTD
        return VocabularyInputs(base_BTD, self.base.head, self.policy.states(batch).hidden_BTD, self.head, "log_ratio")

    def norm_input(self, batch: RolloutBatch, taps: Sequence[float]) -> tuple[Tensor, ...]:
        """Return states of the frozen base; the policy does not run."""
        return base_taps(self.base, batch, tuple(taps))[0]

    def shared_with_norm(self) -> list[nn.Parameter]:
        """Return an empty list: the norm head reads frozen states of the base."""
        return []

    def recomputable(self) -> nn.Module:
        """Return the policy."""
        return self.policy

    @property
    def own_layers(self) -> int:
        """The number of layers of the policy, which sees other states than the base."""
        return self.policy.num_layers

    def own_logits(
        self, ids_NL: Tensor, taps: Sequence[Tensor], cache: Cache, keep: int, where: dict[str, Tensor]
    ) -> Tensor:
        """Compute log q up to a constant; the base does not run."""
        out = self.policy.model.base_model(ids_NL, past_key_values=cache, use_cache=True, **where)
        return self.head.logits(out.last_hidden_state[:, -keep:])

    def _without_base(self, policy_BTD: Tensor, batch: RolloutBatch) -> VocabularyStatistics:
        """Compute the statistics without a pass over p's vocabulary: q is normalised and log p of the tokens stored."""
        asked_BTK = batch.response_BT[..., None]
        if batch.candidate_BTK is not None:
            asked_BTK = torch.cat([asked_BTK, batch.candidate_BTK], -1)
        log_q_BTK = token_log_probs(policy_BTD, self.head, asked_BTK, batch.response_mask_BT)
        log_q_BT = log_q_BTK[..., 0]
        log_p_BT = batch.known_log_p_BT * batch.response_mask_BT
        candidate_log_q = None if batch.candidate_BTK is None else log_q_BTK[..., 1:]
        return VocabularyStatistics(log_p_BT, log_q_BT - log_p_BT, torch.zeros_like(log_q_BT), None, candidate_log_q)
