"""What a training step and an evaluator receive: rollouts of a few prompts, as tensors.

Axes: P prompts, S prompt tokens (left-padded), B rollouts, T response tokens (right-padded).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class RolloutBatch:
    """Rollouts grouped by prompt, each prompt stored once.

    Attributes:
        prompt_ids_PS, prompt_mask_PS: prompt tokens and 1 where they are real, left-padded.
        prompt_of_row_B: index into the P axis.
        response_BT, response_mask_BT: response tokens, the end-of-sequence token included when there is one.
        log_p_BT: full-base log-probability of each response token, in nats.
        score_B: what the oracle said, in [0, 1].
        weight_B: importance weight, 1 on average within a prompt.
        root_B: success rate R(c) of the row's prompt as estimated from its stored rollouts, strictly inside (0, 1).
        prompt_index_P: position of each prompt in the task's list of training or held-out prompts, where that is known.
        weight_total: sum of `weight_B` over the whole optimiser step, all processes and micro-batches included. A
            held-out batch with weight_total 0 is filler that keeps processes in step, and is counted nowhere.
    """

    prompt_ids_PS: Tensor
    prompt_mask_PS: Tensor
    prompt_of_row_B: Tensor
    response_BT: Tensor
    response_mask_BT: Tensor
    log_p_BT: Tensor
    score_B: Tensor
    weight_B: Tensor
    root_B: Tensor
    prompt_index_P: Tensor | None = None
    weight_total: float = 0.0

    def to(self, device: torch.device | str) -> RolloutBatch:
        """The same batch with every tensor on ``device``."""
        moved: dict[str, Any] = {
            f.name: value.to(device) if isinstance(value := getattr(self, f.name), Tensor) else value
            for f in fields(self)
        }
        return RolloutBatch(**moved)

    @property
    def num_rows(self) -> int:
        """B."""
        return self.response_BT.shape[0]
