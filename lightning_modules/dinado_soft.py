"""DiNADO-Soft: an oracle network's ratios, and a separate head for their step-wise norm (Lu et al., ICML 2024)."""

from __future__ import annotations

from typing import Literal

from dinado.batch import RolloutBatch
from dinado.models.scores import Needs, Scored
from dinado.objectives.values import TokenValues, soft_values
from lightning_modules.base import OracleMethod


class DinadoSoft(OracleMethod):
    """R_i(v) = beta_i exp(s_i(v) - norm of s_i); decoding uses the ratios alone."""

    @property
    def norm_input(self) -> Literal["base", "own"]:
        """The oracle network's state."""
        return "own"

    @property
    def needs(self) -> Needs:
        """The L-infinity norm is a maximum over the vocabulary."""
        objective = self.config.objective
        return super().needs._replace(maximum=objective.norm == "linf", support=objective.support)

    def values(self, scored: Scored, batch: RolloutBatch) -> TokenValues:
        """The norm head gives beta, the scores give the ratios."""
        return soft_values(scored.statistics, self.norm(scored, batch), self.config.objective.norm)
