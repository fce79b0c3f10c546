"""DiNADO-Soft: an oracle network's ratios, and a separate head for their step-wise norm (Lu et al., ICML 2024)."""

from __future__ import annotations

from dinado.batch import RolloutBatch
from dinado.objectives.values import TokenValues, soft_values
from dinado.parameters.parameterisation import Needs, Scored
from lightning_modules.value_method import ValueMethod


class DinadoSoft(ValueMethod):
    """DiNADO-Soft: R_i(v) = beta_i exp(s_i(v) - norm of s_i); decoding uses the ratios alone."""

    @property
    def needs(self) -> Needs:
        """The base class's needs, and for the L-infinity norm the maximum over the vocabulary."""
        norm = self.config.objective.norm
        return super().needs._replace(maximum=norm.kind == "linf", support=norm.support)

    def values(self, scored: Scored, batch: RolloutBatch) -> TokenValues:
        """Compute log R from the norm head's beta and the ratios of the scores."""
        return soft_values(scored.statistics, self.norm(scored, batch), self.config.objective.norm.kind)
