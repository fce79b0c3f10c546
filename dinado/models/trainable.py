"""Build what a method trains, from plain settings."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from dinado.models.base_lm import BaseLM
from dinado.models.oracle_network import OracleNetwork
from dinado.models.scores import NetworkScores, PolicyScores, add_lora
from dinado.objectives.reduction import Link
from dinado.seeding import derive_seed


def build_network(
    base: BaseLM,
    link: Link,
    *,
    layers: int,
    width: int,
    heads: int,
    taps: Sequence[float],
    head: str,
    pointer: bool,
    seed: int,
) -> NetworkScores:
    """An oracle network on the base's hidden states; its initialisation is a named stream of ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "oracle network"))
        network = OracleNetwork(
            base.hidden_size,
            base.vocab_size,
            len(taps),
            width=width,
            layers=layers,
            heads=heads,
            head=head,
            pointer=pointer,
            base_weight_VD=base.head.weight_VD,
        )
    return NetworkScores(base, network, list(taps), link)


def build_lora(
    base: BaseLM, *, r: int, alpha: float, dropout: float, targets: str | list[str], seed: int
) -> PolicyScores:
    """The base with LoRA adapters as policy; one copy of the weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lora"))
        add_lora(base, r=r, alpha=alpha, dropout=dropout, targets=targets)
    return PolicyScores(base, base)


def build_full(base: BaseLM) -> PolicyScores:
    """A trainable copy of the whole base as policy."""
    policy = copy.deepcopy(base)
    policy.model.requires_grad_(True)
    return PolicyScores(base, policy)


def adapter_norm(scores: NetworkScores | PolicyScores) -> float:
    """How far training has moved: Frobenius norm of the change of the weights, or of the network's zero-start head."""
    if isinstance(scores, NetworkScores):
        return float(scores.network.out.weight.detach().norm())
    if scores.policy is not scores.base:
        pairs = zip(scores.policy.model.parameters(), scores.base.model.parameters(), strict=True)
        return float(torch.stack([(a.detach() - b.detach()).float().square().sum() for a, b in pairs]).sum().sqrt())
    from peft.tuners.lora import LoraLayer

    total = 0.0
    for module in scores.base.model.modules():
        if isinstance(module, LoraLayer):
            for name, scale in module.scaling.items():
                a_rD, b_Dr = module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach()
                # ||BA||_F^2 = tr(B'B A A'), which needs only r x r matrices.
                total += scale**2 * float(((b_Dr.T @ b_Dr) * (a_rD @ a_rD.T)).sum())
    return total**0.5


def merge_adapters(base: BaseLM) -> nn.Module:
    """Fold LoRA adapters into the weights and return the plain model; the base must not be used afterwards."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(base.model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent = base.model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    return base.model
