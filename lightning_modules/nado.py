"""NADO: R_i(v) = sigmoid of an oracle network's output (Meng et al., NeurIPS 2022)."""

from __future__ import annotations

from dinado.batch import RolloutBatch
from dinado.models.scores import Scored
from dinado.objectives.values import TokenValues, nado_values
from lightning_modules.base import OracleMethod


class Nado(OracleMethod):
    """Every next token has its own value; the scale of R and the ratios that decode share one head."""

    link = "logsigmoid"

    def values(self, scored: Scored, batch: RolloutBatch) -> TokenValues:
        """log R is the score itself."""
        return nado_values(scored.statistics)
