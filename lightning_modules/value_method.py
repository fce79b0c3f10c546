"""Methods that predict R: a norm, values along each rollout, and forward consistency between them.

Axes: B rollouts, T response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.control.norm_head import NormHead
from dinado.objectives.lookahead import lookahead_divergence
from dinado.objectives.values import TokenValues, log_beta
from dinado.objectives.vocabulary import VocabularyStatistics
from dinado.parameters.parameterisation import Needs, Scored
from lightning_modules.diagnostics import HeldOut
from lightning_modules.rollout_method import RolloutMethod, Terms
from lightning_modules.step_numbers import StepNumbers
from lightning_modules.value_loss import ValueLoss, value_loss
from workbench.settings.config import Config
from workbench.settings.derived import has_norm_head, method_of, norm_reads_base


class Details(NamedTuple):
    """The outputs of model and objective on a batch, from which metrics are logged."""

    scored: Scored
    values: TokenValues
    loss: ValueLoss


class ValueMethod(RolloutMethod):
    """Base class of NADO, DiNADO-Soft, -Merge and -Hard, each of which defines log R in :meth:`values`.

    Attributes:
        misplaced: whether the published code misplaces the rows of its loss, as ``objective.masks=official`` repeats.
    """

    misplaced: ClassVar[bool] = True

    def __init__(self, config: Config, base: BaseLM) -> None:
        super().__init__(config, base)
        self.reads_base = norm_reads_base(config)
        self.telescopes = method_of(config).telescopes
        self.has_step_norm = method_of(config).norm_head == "steps"
        if self.reads_base:
            self.norm_head = NormHead(base.state_width, len(config.objective.norm.taps))
        elif has_norm_head(config):
            self.norm_head = NormHead(self.scores.own_width)

    @property
    def needs(self) -> Needs:
        """The quantities that the models must compute; with a policy, each of them costs a pass of the base."""
        norm = self.config.objective.norm
        taps = tuple(norm.taps) if self.reads_base else ()
        return Needs(taps=taps, of_policy=norm.input == "policy" and self.scores.is_policy)

    def values(self, scored: Scored, batch: RolloutBatch) -> TokenValues:
        """Compute log R from the vocabulary statistics."""
        raise NotImplementedError

    def norm(self, scored: Scored, batch: RolloutBatch) -> Tensor:
        """Predict the log of the step-wise norm, ``[B, T]``."""
        return self.log_norm(self.norm_states(scored), batch)

    def log_norm(self, states: Sequence[Tensor], batch: RolloutBatch) -> Tensor:
        """Predict the log of the norm, ``[B, T]``, from the states that the head reads, each ``[B, T, D]``."""
        if self.norm_head is None:
            raise ValueError("this method has no norm head")
        return log_beta(self.norm_head(states), batch.root_B if self.config.targets.root == "store" else None)

    def norm_states(self, scored: Scored) -> Sequence[Tensor]:
        """Return the states that the norm head reads, each ``[B, T, D]``."""
        return scored.taps if self.reads_base else (scored.own_state_BTE,)

    def terms(self, batch: RolloutBatch) -> Terms:
        """Compute statistics, values and loss of a batch."""
        scored = self.scores(batch, self.needs)
        values = self.values(scored, batch)
        loss = value_loss(
            values,
            batch.score_B,
            batch.response_mask_BT,
            finished(batch, self.base),
            self.config.objective,
            torch.log(batch.root_B.float()) if self.config.targets.root == "store" else None,
            self.telescopes,
            lookahead(scored, batch),
            likelihood(scored.statistics, batch) if self.config.objective.likelihood.weight else None,
            scored.prompt_score_B,
            self.misplaced,
            1 - self.config.objective.lookahead.fade * self.global_step / max(self.config.optim.steps - 1, 1),
        )
        statistics = scored.statistics
        held_out = HeldOut(statistics.log_p, statistics.log_q, values.log_r_BT, loss.consistency_B, loss.num_links_B)
        return Terms(loss.total_B, held_out, values.log_r_BT, Details(scored, values, loss))

    @torch.no_grad()
    def measure(self, terms: Terms, batch: RolloutBatch, numbers: StepNumbers) -> None:
        """Add the metrics of the loss terms, the norm and the ratios."""
        super().measure(terms, batch, numbers)
        scored, values, loss = terms.details
        weight_B, keep = batch.weight_B, batch.response_mask_BT.bool()
        for name, term_B in (
            ("train/oracle_ce", loss.token_ce_B),
            ("train/path_ce", loss.path_B),
            ("train/lookahead", loss.lookahead_B),
            ("train/likelihood", loss.likelihood_B),
            ("reg/forward_consistency", loss.consistency_B),
        ):
            numbers.mean(name, term_B, weight_B)
        numbers.mean("tokens", keep.sum(1), weight_B)
        numbers.mean("links", loss.num_links_B, weight_B)
        log_norm = (self.norm(scored, batch) if self.has_step_norm else values.log_v_BT)[keep]
        numbers.mean("norm/log_beta_mean", log_norm)
        numbers.mean("norm/log_beta_std", log_norm.double().square())

    def summarise(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Divide sums over tokens by their number, and turn a mean square into a standard deviation."""
        found = super().summarise(numbers)
        tokens, links = found.pop("tokens"), found.pop("links")
        found["train/oracle_ce"] /= tokens
        found["reg/forward_consistency_per_token"] = found["reg/forward_consistency"] / max(1.0, links)
        variance = found["norm/log_beta_std"] - found["norm/log_beta_mean"] ** 2
        found["norm/log_beta_std"] = max(0.0, variance) ** 0.5
        return found


def finished(batch: RolloutBatch, base: BaseLM) -> Tensor:
    """Tell which responses end with an end-of-sequence token, ``[B]``."""
    last_B1 = batch.response_BT.gather(1, batch.response_mask_BT.sum(1, keepdim=True) - 1)
    return torch.isin(last_B1[:, 0], torch.tensor(base.eos_ids, device=batch.response_BT.device))


def likelihood(statistics: VocabularyStatistics, batch: RolloutBatch) -> Tensor:
    """Compute -C log q(y|c) of each rollout over the mean score of all, ``[B]`` in nats.

    Its expectation over the rollouts is E_{q*}[-log q], the loss of fine-tuning on accepted ones, also for weighted and
    fractional verdicts.
    """
    log_q_B = (statistics.log_q * batch.response_mask_BT).sum(1)
    return -batch.score_B / batch.success * log_q_B


def lookahead(scored: Scored, batch: RolloutBatch) -> Tensor | None:
    """Compute the lookahead divergence ``[B]``; None where the batch has no targets, as in validation."""
    log_q_BTK, log_target_BTL = scored.statistics.candidate_log_q, batch.candidate_log_target_BTL
    if log_q_BTK is None or log_target_BTL is None or batch.value_BT is None:
        return None
    return lookahead_divergence(log_q_BTK, log_target_BTL, batch.value_BT, batch.response_mask_BT)
