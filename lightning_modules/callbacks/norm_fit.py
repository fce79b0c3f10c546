"""A callback that trains the norm head alone first, so that it predicts the score before any ratio is trained.

With the mean norm beta_i equals V_i, the value of the prefix, and a regulariser that detaches V uses it as the target
of the ratios; an untrained norm is no useful target. Only the frozen base runs here, and for Soft the body of its
network, which is trained with the norm: no policy runs and nothing is reduced over the vocabulary.

Axes: B rollouts, T tokens.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from rich.progress import track
from torch import Tensor, nn

from dinado.batch import RolloutBatch
from dinado.objectives.logspace import bernoulli_ce
from lightning_modules.callbacks.graceful_stop import GracefulStop, interruption
from lightning_modules.log_now import log_now
from lightning_modules.value_method import ValueMethod
from workbench.settings.run_settings import OptimConfig


class NormFit(Callback):
    """A callback that trains the norm head for ``optim.norm_steps`` steps before training; a resumed run skips them.

    Args:
        optim: number of steps, learning rate and weight decay.
        progress: whether to show a progress bar.
    """

    def __init__(self, optim: OptimConfig, progress: bool) -> None:
        self.optim = optim
        self.progress = progress

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train the head, unless this run resumes from a checkpoint."""
        if trainer.ckpt_path is not None:
            return
        method, data = cast(ValueMethod, pl_module), cast(Any, trainer).datamodule
        parts = data.accumulation
        batches = data.batches(0, self.optim.norm_steps, parts)
        log_now(trainer.loggers, {"norm/fit_ce": self.fit(method, batches, parts)}, 0)

    def fit(self, method: ValueMethod, batches: Iterable[RolloutBatch], micro_batches: int = 1) -> float:
        """Train the norm head; return the mean cross entropy of the last tenth of the steps, in nats per token.

        Gradients are summed over processes, so the result does not depend on how many there are.

        Args:
            batches: micro-batches of this process, step by step.
            micro_batches: number of micro-batches in a step.

        Raises:
            KeyboardInterrupt: on Ctrl-C or a scheduler's signal; there is nothing worth a checkpoint yet.
        """
        steps, lr = self.optim.norm_steps, self.optim.norm_lr or self.optim.lr
        trained = _parameters(method)
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=self.optim.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
        stops = [callback for callback in method.trainer.callbacks if isinstance(callback, GracefulStop)]
        if self.progress and method.trainer.is_global_zero:
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
            if numbers[2]:  # Every process has the same sum, so all of them stop here.
                raise interruption(next((stop.received for stop in stops if stop.received), signal.SIGTERM))
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            history.append(float(numbers[0] / numbers[1]))
            numbers.zero_()
        recent = history[-max(1, steps // 10) :]
        return sum(recent) / len(recent)


def _loss(method: ValueMethod, batch: RolloutBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return this process's part of the loss, and the cross entropy and number of tokens behind it."""
    log_norm_BT = method.log_norm(method.scores.norm_input(batch, method.needs.taps), batch)
    ce_BT = bernoulli_ce(log_norm_BT, batch.score_B[:, None]) * batch.response_mask_BT
    weighted = (ce_BT.sum(1) * batch.weight_B).sum()
    return weighted / batch.weight_total, weighted.detach(), (batch.response_mask_BT.sum(1) * batch.weight_B).sum()


def _parameters(method: ValueMethod) -> list[nn.Parameter]:
    """List the weights of the norm head, and the trained weights below it."""
    assert method.norm_head is not None, "the rules let through methods with a norm head only"
    return [*method.norm_head.parameters(), *method.scores.shared_with_norm()]
