"""The norm head first: steps in which it alone learns to predict the verdict, before any ratio moves.

With the mean norm beta_i is V_i, the value of the prefix, and a regulariser that holds V fixed teaches the ratios what
V knows; a norm that knows nothing yet teaches nothing. No policy runs here and no vocabulary is looked at: only the
frozen base, and for Soft the body of its network, which the norm shapes. Axes: B rollouts, T tokens.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from rich.progress import track
from torch import Tensor

from dinado.batch import RolloutBatch
from dinado.models.scores import NetworkScores, base_taps
from dinado.objectives.logspace import bernoulli_ce
from dinado.objectives.values import log_beta
from lightning_modules.callbacks import GracefulStop, interruption

if TYPE_CHECKING:
    from lightning_modules.base import OracleMethod


def fit_norm(method: OracleMethod, batches: Iterable[RolloutBatch], micro_batches: int = 1) -> float:
    """Train the norm head for ``optim.norm_steps`` steps; returns the cross entropy of the last tenth, in nats a token.

    Gradients are summed over processes, so the result does not depend on how many there are.

    Args:
        batches: what this process trains on, step by step.
        micro_batches: how many of them make a step.

    Raises:
        KeyboardInterrupt: on Ctrl-C or a scheduler's warning; nothing trained yet would be worth a checkpoint.
    """
    config = method.config
    steps, lr = config.optim.norm_steps, config.optim.norm_lr or config.optim.lr
    trained = _parameters(method)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=config.optim.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    stops = [callback for callback in method.trainer.callbacks if isinstance(callback, GracefulStop)]
    if config.trainer.progress and method.trainer.is_global_zero:
        batches = track(batches, "norm head first", total=steps * micro_batches, transient=True)
    history, numbers = [], torch.zeros(3, device=method.device)
    for index, batch in enumerate(batches, 1):
        loss, ce, tokens = _loss(method, batch.to(method.device))
        loss.backward()
        numbers += torch.stack([ce, tokens, ce.new_tensor(float(any(stop.received for stop in stops)))])
        if index % micro_batches:
            continue
        if dist.is_initialized():
            for tensor in (numbers, *(p.grad for p in trained if p.grad is not None)):
                dist.all_reduce(tensor)
        if numbers[2]:  # every process sees the sum, so all of them stop here
            raise interruption(next((stop.received for stop in stops if stop.received), signal.SIGTERM))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        history.append(float(numbers[0] / numbers[1]))
        numbers.zero_()
    recent = history[-max(1, steps // 10) :]
    return sum(recent) / len(recent)


def _loss(method: OracleMethod, batch: RolloutBatch) -> tuple[Tensor, Tensor, Tensor]:
    """This process's part of the loss, and the cross entropy and number of tokens behind it."""
    assert method.norm_head is not None, "experiments/rules.py lets through methods with a norm head only"
    if isinstance(method.scores, NetworkScores):
        states: tuple[Tensor, ...] = (method.scores.own_states(batch).state_NLE,)
    else:
        states, _ = base_taps(method.base, batch, method.needs.taps)
    root_B = batch.root_B if method.config.targets.root == "store" else None
    ce_BT = bernoulli_ce(log_beta(method.norm_head(states), root_B), batch.score_B[:, None]) * batch.response_mask_BT
    weighted = (ce_BT.sum(1) * batch.weight_B).sum()
    return weighted / batch.weight_total, weighted.detach(), (batch.response_mask_BT.sum(1) * batch.weight_B).sum()


def _parameters(method: OracleMethod) -> list[Tensor]:
    """The norm head, and the body that it reads where that is trained too."""
    assert method.norm_head is not None
    trained: list[Tensor] = list(method.norm_head.parameters())
    if isinstance(method.scores, NetworkScores):
        network = method.scores.network
        pointer = () if network.pointer is None else network.pointer.parameters()
        decodes = {id(network.out.weight), *map(id, pointer)}
        trained += [p for p in network.parameters() if id(p) not in decodes]
    return trained
