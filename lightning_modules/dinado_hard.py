"""DiNADO-Hard: R telescopes from the root, so forward consistency holds by construction.

The published text names Hard and gives no equations; this is our reconstruction (docs/methods.md).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dinado.batch import RolloutBatch
from dinado.objectives.values import TokenValues, hard_values
from dinado.parameters.parameterisation import Scored
from lightning_modules.value_method import ValueMethod


class DinadoHard(ValueMethod):
    """DiNADO-Hard: log R = log R(c) + sum of log(q / p).

    Only the root R(c) has a norm head, which reads the base's states of the prompt; a root from the store needs none.
    """

    def values(self, scored: Scored, batch: RolloutBatch) -> TokenValues:
        """Compute log R by telescoping from the root."""
        if self.norm_head is None:
            log_root_B = torch.log(batch.root_B.float())
        else:
            log_root_B = F.logsigmoid(self.norm_head([tap[:, :1] for tap in scored.taps])[:, 0])
        return hard_values(scored.statistics, log_root_B)
