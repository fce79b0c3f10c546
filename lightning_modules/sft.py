"""Supervised fine-tuning on references, or on the rollouts that the oracle accepted: the plain alternative."""

from __future__ import annotations

import torch
from torch import Tensor

from dinado.batch import RolloutBatch
from dinado.models.scores import Scored
from dinado.objectives.losses import OracleLoss
from dinado.objectives.values import TokenValues, hard_values
from lightning_modules.base import OracleMethod


class Sft(OracleMethod):
    """Maximum likelihood. Its implied R = R(c) q / p is reported under the same names as the other methods'."""

    def values(self, scored: Scored, batch: RolloutBatch) -> TokenValues:
        """The values that q/p implies, for reporting only."""
        return hard_values(scored.statistics, torch.log(batch.root_B.float()))

    def loss(self, scored: Scored, values: TokenValues, batch: RolloutBatch, finished_B: Tensor) -> OracleLoss:
        """Negative log-likelihood of the response, in nats a sequence."""
        terms = super().loss(scored, values, batch, finished_B)
        nll_B = -(scored.statistics.log_q * batch.response_mask_BT).sum(1)
        terms.total_B = nll_B
        return terms
