"""What every method shares: models, the training step, logged numbers, and checkpoints of trained weights only.

A method says how statistics become values (:meth:`OracleMethod.values`); the rest is here. Axes: B rollouts,
T response tokens.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor

from dinado.batch import RolloutBatch
from dinado.errors import CheckpointError
from dinado.models.base_lm import BaseLM
from dinado.models.controlled_lm import ControlledLM
from dinado.models.oracle_network import NormHead
from dinado.models.scores import Needs, NetworkScores, PolicyScores, Scored
from dinado.models.trainable import adapter_norm, build_full, build_lora, build_network
from dinado.objectives.lookahead import lookahead_divergence
from dinado.objectives.losses import LossWeights, OracleLoss, oracle_loss
from dinado.objectives.reduction import Link
from dinado.objectives.values import TokenValues, log_beta
from dinado.seeding import derive_seed
from experiments.config import Config
from experiments.derived import resolved_parameters
from lightning_modules.loggers.build import give
from lightning_modules.norm_fit import fit_norm
from lightning_modules.optim import configure
from lightning_modules.validation import RolloutDiagnostics


class Step(NamedTuple):
    """One batch after model and objective."""

    scored: Scored
    values: TokenValues
    loss: OracleLoss


class OracleMethod(L.LightningModule):
    """Base class of the methods.

    Args:
        config: the whole configuration.
        base: the frozen base; adapters, if any, are injected into it here.
    """

    link: ClassVar[Link] = "identity"
    """How an oracle network's output becomes a score."""
    norm_steps: ClassVar[bool] = True
    """Whether the norm head speaks at every step, not at the root alone."""
    telescopes: ClassVar[bool] = False
    """Whether values are products of q/p from the root on."""

    def __init__(self, config: Config, base: BaseLM) -> None:
        super().__init__()
        self.config = config
        self.scores = build_scores(config, base, self.link)
        self.norm_head: NormHead | None = None
        if self.norm_input == "base":
            self.norm_head = NormHead(base.hidden_size, len(config.objective.norm_taps))
        elif self.norm_input == "own":
            self.norm_head = NormHead(self.scores.own_width)
        self.loss_weights = LossWeights(
            **{f.name: getattr(config.objective, f.name) for f in dataclasses.fields(LossWeights)}
        )
        self.strict_loading = False
        self.diagnostics = RolloutDiagnostics()
        self._validating = ExitStack()
        self._clock = time.perf_counter()
        self._tokens = 0

    @property
    def norm_input(self) -> Literal["base", "own"] | None:
        """Whose state the norm head reads; None for a method without one."""
        return None

    @property
    def base(self) -> BaseLM:
        """The frozen base."""
        return self.scores.base

    @property
    def needs(self) -> Needs:
        """What the models must compute; with a policy, each of these costs a pass of the base."""
        objective = self.config.objective
        taps = tuple(objective.norm_taps) if self.norm_input == "base" else ()
        return Needs(taps=taps, of_policy=objective.norm_input == "policy" and isinstance(self.scores, PolicyScores))

    def controlled(self, alpha: float | None = None) -> ControlledLM:
        """The model that decodes what has been trained so far."""
        return ControlledLM(self.scores, self.config.alpha if alpha is None else alpha)

    def values(self, scored: Scored, batch: RolloutBatch) -> TokenValues:
        """How statistics become log R; the one thing in which methods differ."""
        raise NotImplementedError

    def norm(self, scored: Scored, batch: RolloutBatch) -> Tensor:
        """log of the step-wise norm, ``[B, T]``."""
        if self.norm_head is None:
            raise ValueError("this method has no norm head")
        root_B = batch.root_B if self.config.targets.root == "store" else None
        return log_beta(self.norm_head(self.norm_states(scored)), root_B)

    def norm_states(self, scored: Scored) -> Sequence[Tensor]:
        """What the norm head reads, each ``[B, T, D]``."""
        return scored.taps if self.norm_input == "base" else (scored.own_state_BTE,)

    def run(self, batch: RolloutBatch) -> Step:
        """Statistics, values and loss of a batch."""
        scored = self.scores(batch, self.needs)
        values = self.values(scored, batch)
        finished_B = torch.isin(
            batch.response_BT.gather(1, batch.response_mask_BT.sum(1, keepdim=True) - 1)[:, 0],
            torch.tensor(self.base.eos_ids, device=batch.response_BT.device),
        )
        return Step(scored, values, self.loss(scored, values, batch, finished_B))

    def loss(self, scored: Scored, values: TokenValues, batch: RolloutBatch, finished_B: Tensor) -> OracleLoss:
        """Terms of the loss for each rollout."""
        log_root_B = torch.log(batch.root_B.float()) if self.config.targets.root == "store" else None
        mask_BT, weights = batch.response_mask_BT, self.loss_weights
        return oracle_loss(
            values, batch.score_B, mask_BT, finished_B, weights, log_root_B, self.telescopes, lookahead(scored, batch)
        )

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """Weighted sum over the rollouts of this process, normalised by the whole optimiser step.

        DDP averages over processes and Lightning over accumulated micro-batches; multiplying by both undoes that, so
        that 1 x 8, 2 x 4 and 8 x 1 give the same update.
        """
        # Dropout draws from the global stream. Named by step and process, that is the same after resuming.
        torch.manual_seed(derive_seed(self.config.seed, "dropout", self.global_step, batch_idx, self.global_rank))
        step = self.run(batch)
        total = batch.weight_total or float(batch.weight_B.sum())
        share = self.trainer.world_size * self.trainer.accumulate_grad_batches / total
        loss = (step.loss.total_B * batch.weight_B).sum() * share
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {float(loss)} at optimiser step {self.global_step}")
        self._tokens += int(batch.response_mask_BT.sum())
        if (
            self.global_step + 1
        ) % self.config.trainer.log_every == 0 and not self.trainer.fit_loop._should_accumulate():
            self._log_step(self._train_numbers(step, batch, float(loss.detach())))
        return loss

    def _log_step(self, numbers: dict[str, float]) -> None:
        """Numbers of a step, written before the checkpoint that counts it: Lightning would write them after."""
        self.log_dict(numbers, on_step=True, on_epoch=False, logger=False)
        give(self.trainer.loggers, numbers, self.global_step)

    def on_validation_epoch_start(self) -> None:
        """Processes have unequal shares of the held-out batches."""
        self._validating.enter_context(self.base.in_step())

    def validation_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        """Collect what held-out base rollouts tell about q and R."""
        step = self.run(batch)
        self.diagnostics.update(batch, step.scored.statistics, step.values, step.loss)

    def on_validation_epoch_end(self) -> None:
        """Log the held-out numbers."""
        self._validating.close()
        self.log_dict({f"val/{k}": v for k, v in self.diagnostics.compute().items()}, rank_zero_only=True)
        self.diagnostics.reset()

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up, see lightning_modules/optim.py."""
        return configure(self.config.optim, self.scores, self.norm_head)

    def setup(self, stage: str) -> None:
        """What is frozen is the same on every process; DDP need not send it around."""
        frozen = [name for name, p in self.named_parameters() if not p.requires_grad]
        self._ddp_params_and_buffers_to_ignore = [*frozen, *(name for name, _ in self.named_buffers())]

    def on_fit_start(self) -> None:
        """The norm head first, where that is asked for; a resumed run has done so before its checkpoint."""
        if self.config.optim.norm_steps and self.trainer.ckpt_path is None:
            data: Any = self.trainer.datamodule
            parts = data.accumulation
            norm_fit_ce = fit_norm(self, data.batches(0, self.config.optim.norm_steps, parts), parts)
            give(self.trainer.loggers, {"norm/fit_ce": norm_fit_ce}, 0)

    def on_train_start(self) -> None:
        """The base stays in eval mode; what is trained is in train mode."""
        self.train()
        self._clock = time.perf_counter()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Trained parameters only; the frozen base is never saved."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record which base the weights belong to."""
        checkpoint["base_fingerprint"] = self.base.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another base or another shape."""
        check_checkpoint(self, checkpoint)

    @torch.no_grad()
    def _train_numbers(self, step: Step, batch: RolloutBatch, loss: float) -> dict[str, float]:
        mask = batch.response_mask_BT.bool()
        terms = OracleLoss(*(tensor.detach() for tensor in vars(step.loss).values()))
        statistics = step.scored.statistics
        weight_B = batch.weight_B / batch.weight_B.sum()
        consistency = float((terms.consistency_B * weight_B).sum())
        log_ratio = (statistics.score - statistics.log_mean).detach()[mask]
        has_steps = self.norm_head is not None and self.norm_steps
        log_norm = (self.norm(step.scored, batch) if has_steps else step.values.log_v_BT.detach())[mask]
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        tokens, self._tokens = self._tokens, 0
        return {
            "train/loss": loss,
            "train/oracle_ce": float((terms.token_ce_B * weight_B).sum() / mask.sum(1).float().mean()),
            "train/path_ce": float((terms.path_B * weight_B).sum()),
            "train/lookahead": float((terms.lookahead_B * weight_B).sum()),
            "train/positives_share": float((batch.score_B * weight_B).sum()),
            "reg/forward_consistency": consistency,
            "reg/forward_consistency_per_token": consistency / max(1.0, float(terms.num_links_B.float().mean())),
            "norm/log_beta_mean": float(log_norm.mean()),
            "norm/log_beta_std": float(log_norm.std(unbiased=False)),
            "norm/log_ratio_max": float(log_ratio.abs().max()),
            "norm/log_ratio_l2": float(log_ratio.square().mean().sqrt()),
            "norm/adapter_fro": adapter_norm(self.scores),
            "perf/tokens_per_s": tokens * self.trainer.world_size / max(seconds, 1e-9),
            "perf/peak_memory_mb": peak_memory_mb(),
        }


def lookahead(scored: Scored, batch: RolloutBatch) -> Tensor | None:
    """The lookahead divergence ``[B]``; None where the batch has no targets for it, as held-out ones have not."""
    log_q_BTK, log_target_BTL = scored.statistics.candidate_log_q, batch.candidate_log_target_BTL
    if log_q_BTK is None or log_target_BTL is None or batch.value_BT is None:
        return None
    return lookahead_divergence(log_q_BTK, log_target_BTL, batch.value_BT, batch.response_mask_BT)


def build_scores(config: Config, base: BaseLM, link: Link) -> NetworkScores | PolicyScores:
    """What the configuration trains."""
    kind = resolved_parameters(config)
    if kind == "network":
        return build_network(base, link, seed=config.seed, **dataclasses.asdict(config.network))
    return build_full(base) if kind == "full" else build_lora(base, seed=config.seed, **dataclasses.asdict(config.lora))


def check_checkpoint(method: OracleMethod, checkpoint: dict[str, Any]) -> None:
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


def peak_memory_mb() -> float:
    """Peak memory of this process: on the GPU when there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
