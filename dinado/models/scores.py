"""Where scores come from: an oracle network beside the base, or adapters inside it.

Both turn a batch into vocabulary statistics and the state a norm head may read, so a method never asks which of the
two it trains. Axes: B rollouts, T response tokens, D and E widths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dinado.batch import RolloutBatch
from dinado.errors import UserError
from dinado.models.base_lm import BaseLM, LMStates
from dinado.models.oracle_network import NetworkStates, OracleNetwork
from dinado.models.shared_prefix import align
from dinado.objectives.reduction import Link
from dinado.objectives.vocabulary import VocabularyStatistics, token_log_probs, vocabulary_statistics


class Needs(NamedTuple):
    """What a method needs beyond log q, so that nothing else is computed.

    Attributes:
        maximum: the L-infinity norm of the scores.
        support: take it over this many likeliest tokens; 0 takes the whole vocabulary.
        taps: depths that a norm head reads, as fractions of the layers; empty for none.
        of_policy: read them from the policy as it stands, without gradient, which saves a pass of the base.
    """

    maximum: bool = False
    support: int = 0
    taps: tuple[float, ...] = ()
    of_policy: bool = False


NOTHING_MORE = Needs()


class Scored(NamedTuple):
    """A batch after the models have read it.

    Attributes:
        taps: states ``[B, T, D]`` at the depths that were needed.
        own_state_BTE: the trained states.
    """

    statistics: VocabularyStatistics
    taps: tuple[Tensor, ...]
    own_state_BTE: Tensor


class NetworkScores(nn.Module):
    """Scores from an oracle network on the base's hidden states."""

    def __init__(self, base: BaseLM, network: OracleNetwork, taps: list[float], link: Link) -> None:
        super().__init__()
        self.base = base
        self.network = network
        self.taps = taps
        self.link = link

    @property
    def own_width(self) -> int:
        """E, width of the trained states."""
        return self.network.width

    def forward(self, batch: RolloutBatch, needs: Needs = NOTHING_MORE) -> Scored:
        """Statistics of a batch; gradients reach the network only."""
        states = frozen_states(self.base, batch, [*needs.taps, *self.taps])
        taps, states = split_taps(states, len(needs.taps), batch.prompt_of_row_B)
        own = self.own_states(batch, states)
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
        return Scored(statistics, taps, own.state_NLE)

    def own_states(self, batch: RolloutBatch, states: LMStates | None = None) -> NetworkStates:
        """The network's states ``[B, T, ...]``, without a look at the vocabulary."""
        states = frozen_states(self.base, batch, self.taps) if states is None else states
        return self.network.forward_batch(states, batch, self.base.head)


class PolicyScores(nn.Module):
    """Scores log q - log p from a policy: the base with adapters (one copy of the weights), or a full copy.

    Args:
        base: the frozen base. With LoRA, adapters are injected into its model and switched on for the policy only.
        policy: what runs the policy: the same BaseLM when adapters live in it, another one for a full copy.
    """

    def __init__(self, base: BaseLM, policy: BaseLM) -> None:
        super().__init__()
        self.base = base
        self.policy = policy

    @property
    def own_width(self) -> int:
        """Width of the policy's states."""
        return self.policy.hidden_size

    def forward(self, batch: RolloutBatch, needs: Needs = NOTHING_MORE) -> Scored:
        """Statistics of a batch; gradients reach the policy's trainable weights only."""
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
        tokens = (batch.response_BT, batch.response_mask_BT)
        if needs.maximum and base_BTD is not None:
            statistics = vocabulary_statistics(
                base_BTD,
                self.base.head,
                policy_BTD,
                self.policy.adapted_head,
                *tokens,
                "log_ratio",
                support=needs.support,
                candidate_BTK=batch.candidate_BTK,
            )
        else:
            # A policy is normalised already and log p of the sampled tokens is on record: no pass over p's vocabulary.
            asked_BTK = batch.response_BT[..., None]
            if batch.candidate_BTK is not None:
                asked_BTK = torch.cat([asked_BTK, batch.candidate_BTK], -1)
            log_q_BTK = token_log_probs(policy_BTD, self.policy.adapted_head, asked_BTK, batch.response_mask_BT)
            log_q_BT = log_q_BTK[..., 0]
            log_p_BT = batch.log_p_BT * batch.response_mask_BT
            candidate_log_q = None if batch.candidate_BTK is None else log_q_BTK[..., 1:]
            statistics = VocabularyStatistics(
                log_p_BT, log_q_BT - log_p_BT, torch.zeros_like(log_q_BT), None, candidate_log_q
            )
        return Scored(statistics, taps, policy_BTD)


def base_taps(base: BaseLM, batch: RolloutBatch, taps: tuple[float, ...]) -> tuple[tuple[Tensor, ...], LMStates]:
    """States of the frozen base, adapters off, at some depths; see :func:`split_taps`."""
    return split_taps(frozen_states(base, batch, taps), len(taps), batch.prompt_of_row_B)


def frozen_states(base: BaseLM, batch: RolloutBatch, taps: Sequence[float]) -> LMStates:
    """States of the frozen base, adapters off: those that were recorded with the rollouts, or else computed now."""
    if batch.recorded is None:
        with adapters(base, on=False):
            return base.states(batch, taps)
    recorded, dtype = batch.recorded, base.head.weight_VD.dtype
    last, *places = (recorded.depths.index(layer) for layer in (base.num_layers, *map(base.layer, taps)))
    return LMStates(
        align(
            recorded.prompt_PSJD[:, :, last].to(dtype),
            recorded.response_BRJD[:, :, last].to(dtype),
            batch.prompt_of_row_B,
        ),
        batch.prompt_mask_PS,
        [recorded.prompt_PSJD[:, :, place].to(dtype) for place in places],
        [recorded.response_BRJD[:, :, place].to(dtype) for place in places],
    )


def split_taps(states: LMStates, count: int, prompt_of_row_B: Tensor) -> tuple[tuple[Tensor, ...], LMStates]:
    """The first ``count`` depths as ``[B, T, D]`` in line with response tokens, and the states without them."""
    first = tuple(
        align(at_prompt, at_response, prompt_of_row_B)
        for at_prompt, at_response in zip(states.prompt_taps[:count], states.response_taps[:count], strict=True)
    )
    rest = dataclasses.replace(
        states, prompt_taps=states.prompt_taps[count:], response_taps=states.response_taps[count:]
    )
    return first, rest


@contextmanager
def adapters(lm: BaseLM, *, on: bool) -> Iterator[None]:
    """Switch the adapters inside a model on or off for a while; nothing happens when it has none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in lm.model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    # peft's own switch also toggles requires_grad, which DistributedDataParallel must not see change.
    for layer in layers:
        layer._disable_adapters = not on
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


def add_lora(base: BaseLM, *, r: int, alpha: float, dropout: float, targets: str | list[str]) -> list[nn.Parameter]:
    """Inject LoRA adapters (Hu et al. 2021) through peft, zero at the start; returns their parameters."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    try:
        inject_adapter_in_model(config, base.model)
    except ValueError as error:
        raise UserError(f"lora.targets={targets}: {str(error).splitlines()[0]}") from None
    out = base.model.get_output_embeddings()
    if hasattr(out, "active_adapters"):
        # Folding them in would change the input embeddings too, and dropout before them would not be applied.
        if out.weight is base.model.get_input_embeddings().weight:
            raise UserError(
                "lora.targets adapts the output embedding, which this base reads its input with; leave it out"
            )
        if dropout:
            raise UserError("lora.targets adapts the output embedding, which lora.dropout cannot reach; set it to 0")
    return [p for name, p in base.model.named_parameters() if "lora_" in name and p.requires_grad]
