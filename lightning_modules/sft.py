"""Supervised fine-tuning on references, or on the rollouts that the oracle accepted, as the baseline."""

from __future__ import annotations

from dinado.batch import RolloutBatch
from lightning_modules.diagnostics import HeldOut
from lightning_modules.rollout_method import RolloutMethod, Terms


class Sft(RolloutMethod):
    """Maximum-likelihood training, which predicts no R."""

    def terms(self, batch: RolloutBatch) -> Terms:
        """Compute the negative log-likelihood of each response, in nats per sequence."""
        log_q_BT = self.scores.log_q(batch)
        return Terms(-(log_q_BT * batch.response_mask_BT).sum(1), HeldOut(batch.log_p_BT, log_q_BT))
