"""An oracle network beside the frozen base.

Axes: B rollouts, T response tokens, N rows, L new positions, V vocabulary, D and E widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from transformers import Cache

from dinado.bases.causal import BaseLM, LMStates
from dinado.bases.frozen_states import frozen_states, split_taps
from dinado.batch import RolloutBatch
from dinado.control.oracle_network import NetworkRun, NetworkStates, OracleNetwork
from dinado.objectives.reduction import Link, link_scores
from dinado.objectives.vocabulary import vocabulary_statistics
from dinado.parameters.parameterisation import (
    NOTHING_MORE,
    CannotFold,
    Needs,
    Parameterisation,
    Scored,
    VocabularyInputs,
)
from dinado.seeding import derive_seed


class Network(Parameterisation):
    """An oracle network on the base's hidden states, whose output gives the scores.

    Args:
        network: reads the states and gives logits u over the vocabulary.
        taps: depths of the base that it reads, as fractions of the layers.
        link: how u becomes a score.
    """

    is_policy = False

    def __init__(self, base: BaseLM, network: OracleNetwork, taps: list[float], link: Link) -> None:
        super().__init__(base)
        self.network = network
        self.taps = taps
        self.link = link

    @classmethod
    def inject(
        cls,
        base: BaseLM,
        *,
        link: Link,
        seed: int,
        layers: int,
        width: int,
        heads: int,
        taps: Sequence[float],
        head: str,
        pointer: bool,
    ) -> Self:
        """Build a network for a base, its scores 0 at the start; see :class:`OracleNetwork` for the settings."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "oracle network"))
            network = OracleNetwork(
                base.state_width,
                base.vocab_size,
                len(taps),
                width=width,
                layers=layers,
                heads=heads,
                head=head,
                pointer=pointer,
                base_weight_VD=base.head.weight_VD,
            )
        return cls(base, network, list(taps), link)

    @property
    def own_width(self) -> int:
        """E, width of the network's states."""
        return self.network.width

    def forward(self, batch: RolloutBatch, needs: Needs = NOTHING_MORE) -> Scored:
        """Score a batch; gradients reach the network only."""
        states = frozen_states(self.base, batch, [*needs.taps, *self.taps])
        taps, states = split_taps(states, len(needs.taps), batch.prompt_of_row_B)
        ran = self.network.run_batch(states, batch, self.base.head)
        own = ran.along_responses(batch)
        statistics = vocabulary_statistics(
            states.hidden_BTD,
            self.base.head,
            self.network.score_hidden(own),
            self.network.head(self.base.head),
            batch.response_BT,
            batch.response_mask_BT,
            self.link,
            maximum=needs.maximum,
            support=needs.support,
            candidate_BTK=batch.candidate_BTK,
        )
        prompt_score_B = self._prompt_scores(ran)[batch.prompt_of_row_B] if needs.prompt_score else None
        return Scored(statistics, taps, own.state_NLE, prompt_score_B)

    def _prompt_scores(self, ran: NetworkRun) -> Tensor:
        """Compute the score of each prompt's last token after all tokens before it, ``[P]`` float32."""
        u_PV = self.network.head(self.base.head).logits(self.network.score_hidden(ran.before_last())[:, 0])
        score_P = link_scores(self.link, u_PV).gather(1, ran.prompt_ids_PS[:, -1:])[:, 0]
        return score_P.masked_fill(ran.prompt_mask_PS.sum(1) < 2, -torch.inf)

    def log_q(self, batch: RolloutBatch) -> Tensor:
        """Compute the log-probability of each response token under p * R."""
        return self(batch).statistics.log_q

    def vocabulary_inputs(self, batch: RolloutBatch) -> VocabularyInputs:
        """Compute the states of base and network."""
        states, head = frozen_states(self.base, batch, self.taps), self.base.head
        score_BTE = self.network.score_hidden(self.own_states(batch, states))
        return VocabularyInputs(states.hidden_BTD, head, score_BTE, self.network.head(head), self.link)

    def own_states(self, batch: RolloutBatch, states: LMStates | None = None) -> NetworkStates:
        """Compute the network's states ``[B, T, ...]``, without a pass over the vocabulary."""
        states = frozen_states(self.base, batch, self.taps) if states is None else states
        return self.network.run_batch(states, batch, self.base.head).along_responses(batch)

    def norm_input(self, batch: RolloutBatch, taps: Sequence[float]) -> tuple[Tensor, ...]:
        """Return the network's own states."""
        return (self.own_states(batch).state_NLE,)

    def shared_with_norm(self) -> list[nn.Parameter]:
        """List the weights of the network's body; those that lead from its states to the vocabulary are left out."""
        pointer = () if self.network.pointer is None else self.network.pointer.parameters()
        decodes = {id(self.network.out.weight), *map(id, pointer)}
        return [p for p in self.network.parameters() if id(p) not in decodes]

    def fold(self) -> nn.Module:
        """Raise :class:`CannotFold`: a network needs the base beside it."""
        raise CannotFold(
            "an oracle network is not a language model of its own; take a run that trained the model (sft, "
            "dinado_merge, or dinado_hard with parameters=lora)"
        )

    def change_norm(self) -> float:
        """Compute the Frobenius norm of the output matrix, which is 0 at the start."""
        return float(self.network.out.weight.detach().norm())

    @property
    def depths(self) -> tuple[float, ...]:
        """Depths of the base that the network reads."""
        return tuple(self.taps)

    @property
    def own_layers(self) -> int:
        """The number of cache layers of the network."""
        return self.network.cache_layers

    def own_logits(
        self, ids_NL: Tensor, taps: Sequence[Tensor], cache: Cache, keep: int, where: dict[str, Tensor]
    ) -> Tensor:
        """Compute log R, up to a constant."""
        network, base_head = self.network, self.base.head
        ran = network.run(network.features(taps, ids_NL, base_head), past_key_values=cache, **where)
        states = NetworkStates(*(out[:, -keep:] for out in ran), *(() if len(ran) > 1 else (None,)))
        return link_scores(self.link, network.head(base_head).logits(network.score_hidden(states)))
