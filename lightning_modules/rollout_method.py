"""The base class of all methods: models, training step, logged metrics, and checkpoints of trained weights only.

A method implements :meth:`RolloutMethod.terms`; the rest is here. Axes: B rollouts, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch
from torch import Tensor

from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.control.controlled_lm import ControlledLM
from dinado.control.norm_head import NormHead
from dinado.errors import CheckpointError
from dinado.objectives.reduction import Link
from dinado.seeding import derive_seed
from lightning_modules.build_parameters import build_parameters
from lightning_modules.diagnostics import HeldOut, RolloutDiagnostics
from lightning_modules.log_now import log_now
from lightning_modules.memory import peak_memory_mb
from lightning_modules.optimisers import configure
from lightning_modules.step_numbers import StepNumbers
from workbench.settings.config import Config


class Terms(NamedTuple):
    """The result of a method on a batch.

    Attributes:
        loss_B: loss of each rollout, in nats.
        held_out: input of the diagnostics of held-out rollouts.
        log_r_BT: log R after each token; None for a method that predicts none.
        details: input of the method's own :meth:`RolloutMethod.measure`.
    """

    loss_B: Tensor
    held_out: HeldOut
    log_r_BT: Tensor | None = None
    details: Any = None


class RolloutMethod(L.LightningModule):
    """Base class of the methods.

    Args:
        config: the whole configuration.
        base: the frozen base; adapters, if any, are injected into it here.

    Attributes:
        scores: the parameterisation, which holds the trained weights and gives scores.
        norm_head: predicts the norm of R; None for a method without one.
    """

    link: ClassVar[Link] = "identity"
    """How an oracle network's output becomes a score."""

    def __init__(self, config: Config, base: BaseLM) -> None:
        super().__init__()
        self.config = config
        self.scores = build_parameters(config, base, self.link)
        self.norm_head: NormHead | None = None
        self.strict_loading = False
        self.diagnostics = RolloutDiagnostics()
        self._numbers = StepNumbers()
        self._validating = ExitStack()
        self._clock = time.perf_counter()
        self._tokens = 0

    @property
    def base(self) -> BaseLM:
        """The frozen base."""
        return self.scores.base

    def controlled(self, alpha: float | None = None) -> ControlledLM:
        """Return the model that decodes with the weights trained so far."""
        return ControlledLM(self.scores, self.config.alpha if alpha is None else alpha)

    def terms(self, batch: RolloutBatch) -> Terms:
        """Compute the loss of each rollout, and the inputs of diagnostics and metrics."""
        raise NotImplementedError

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """Compute the weighted sum of losses of this process's rollouts, normalised by the whole optimiser step.

        DDP averages over processes and Lightning over accumulated micro-batches; multiplying by both undoes that, so
        that 1 x 8, 2 x 4 and 8 x 1 give the same update.
        """
        # Dropout draws from the global stream; a seed per step and process makes it the same after resuming.
        torch.manual_seed(derive_seed(self.config.seed, "dropout", self.global_step, batch_idx, self.global_rank))
        terms = self.terms(batch)
        total = batch.weight_total or float(batch.weight_B.sum())
        share = self.trainer.world_size * self.trainer.accumulate_grad_batches / total
        loss = (terms.loss_B * batch.weight_B).sum() * share
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {float(loss)} at optimiser step {self.global_step}")
        self._tokens += int(batch.response_mask_BT.sum())
        if (self.global_step + 1) % self.config.trainer.log_every == 0:
            self._log_step(terms, batch)
        return loss

    @torch.no_grad()
    def measure(self, terms: Terms, batch: RolloutBatch, numbers: StepNumbers) -> None:
        """Add the metrics of a micro-batch to those of the step; methods with more metrics extend it."""
        numbers.mean("train/loss", terms.loss_B, batch.weight_B)
        numbers.mean("train/positives_share", batch.score_B, batch.weight_B)
        if terms.held_out.log_p_BT is not None:
            keep = batch.response_mask_BT.bool()
            log_ratio = (terms.held_out.log_q_BT.detach() - terms.held_out.log_p_BT.detach())[keep]
            numbers.largest("norm/log_ratio_max", log_ratio.abs())
            numbers.mean("norm/log_ratio_l2", log_ratio.double().square())

    def summarise(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Turn the means of a step into the metrics that are logged."""
        found = dict(numbers)
        if "norm/log_ratio_l2" in found:
            found["norm/log_ratio_l2"] **= 0.5
        return found

    def _log_step(self, terms: Terms, batch: RolloutBatch) -> None:
        """Collect the metrics of a micro-batch; after the last one, log those of the step.

        They are written before the checkpoint that counts the step: Lightning would write them after it.
        """
        self.measure(terms, batch, self._numbers)
        if self.trainer.fit_loop._should_accumulate():
            return
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        tokens, self._tokens = self._tokens, 0
        numbers = self.summarise(self._numbers.reduce()) | {
            "norm/adapter_fro": self.scores.change_norm(),
            "perf/tokens_per_s": tokens * self.trainer.world_size / max(seconds, 1e-9),
            "perf/peak_memory_mb": peak_memory_mb(),
        }
        self.log_dict(numbers, on_step=True, on_epoch=False, logger=False)
        log_now(self.trainer.loggers, numbers, self.global_step)

    def on_validation_epoch_start(self) -> None:
        """Let ranks run the base unequal numbers of times: they have unequal shares of the held-out batches."""
        self._validating.enter_context(self.base.in_step())

    def validation_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        """Add held-out rollouts of the base to the diagnostics of q and R."""
        self.diagnostics.update(batch, self.terms(batch).held_out)

    def on_validation_epoch_end(self) -> None:
        """Log the held-out metrics."""
        self._validating.close()
        self.log_dict({f"val/{k}": v for k, v in self.diagnostics.compute().items()}, rank_zero_only=True)
        self.diagnostics.reset()

    def configure_optimizers(self) -> Any:
        """Build the optimiser and its schedule, see lightning_modules/optimisers.py."""
        return configure(self.config.optim, self.scores, self.norm_head)

    def setup(self, stage: str) -> None:
        """Exclude frozen weights and buffers from DDP's broadcast: they are the same on every process."""
        frozen = [name for name, p in self.named_parameters() if not p.requires_grad]
        self._ddp_params_and_buffers_to_ignore = [*frozen, *(name for name, _ in self.named_buffers())]

    def on_train_start(self) -> None:
        """Put the trained modules into train mode; the base stays in eval mode."""
        self.train()
        self._clock = time.perf_counter()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the trained parameters only; the frozen base is never saved."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record which base the weights belong to."""
        checkpoint["base_fingerprint"] = self.base.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise :class:`CheckpointError` for weights of another base or another shape."""
        check_checkpoint(self, checkpoint)


def check_checkpoint(method: RolloutMethod, checkpoint: dict[str, Any]) -> None:
    """Raise :class:`CheckpointError` unless the checkpoint holds exactly this method's trained parameters."""
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError("the checkpoint holds no trained parameters; start the run again")
    saved = {name: tuple(value.shape) for name, value in state.items()}
    wanted = {name: tuple(p.shape) for name, p in method.named_parameters() if p.requires_grad}
    if saved != wanted:
        odd = sorted(set(saved.items()) ^ set(wanted.items()))[0]
        raise CheckpointError(f"the checkpoint does not fit this configuration: {odd[0]} {odd[1]} differs")
    check_base(checkpoint, method.base)


def check_base(checkpoint: dict[str, Any], base: BaseLM) -> None:
    """Raise :class:`CheckpointError` if the checkpoint was trained on another base, tokenizer or temperature."""
    if checkpoint.get("base_fingerprint") != base.fingerprint:
        raise CheckpointError(
            f"the checkpoint was trained on another base than base.name={base.name} at temperature {base.temperature:g}"
        )
