"""NADO: R_i(v) = sigmoid of an oracle network's output (Meng et al., NeurIPS 2022)."""

from __future__ import annotations

from dinado.batch import RolloutBatch
from dinado.objectives.values import TokenValues, nado_values
from dinado.parameters.parameterisation import Needs, Scored
from lightning_modules.value_method import ValueMethod


class Nado(ValueMethod):
    """NADO: every next token has its own value; the scale of R and the ratios used in decoding share one head."""

    link = "logsigmoid"
    misplaced = False

    @property
    def needs(self) -> Needs:
        """The base class's needs, and where V_0 is tied to the prompt the score of its last token."""
        return super().needs._replace(prompt_score=self.config.objective.consistency.prompt)

    def values(self, scored: Scored, batch: RolloutBatch) -> TokenValues:
        """Return the scores themselves as log R."""
        return nado_values(scored.statistics)
