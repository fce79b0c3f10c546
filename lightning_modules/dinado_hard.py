"""DiNADO-Hard: R telescopes from the root, so forward consistency holds by construction.

The published text names Hard and gives no equations; this is our reconstruction (docs/methods.md).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from dinado.batch import RolloutBatch
from dinado.models.scores import Scored
from dinado.objectives.values import TokenValues, hard_values
from lightning_modules.base import OracleMethod


class DinadoHard(OracleMethod):
    """log R = log R(c) + sum of log(q / p); only the root R(c) has a norm head, and none if the store knows it."""

    norm_steps = False
    telescopes = True

    @property
    def norm_input(self) -> Literal["base"] | None:
        """The root is a fact about the prompt, which the base has read; one from the store leaves nothing to learn."""
        return "base" if self.config.targets.root == "learned" else None

    def values(self, scored: Scored, batch: RolloutBatch) -> TokenValues:
        """Values telescope from the root."""
        if self.norm_head is None:
            log_root_B = torch.log(batch.root_B.float())
        else:
            log_root_B = F.logsigmoid(self.norm_head([tap[:, :1] for tap in scored.taps])[:, 0])
        return hard_values(scored.statistics, log_root_B)
