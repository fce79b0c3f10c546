"""The batch of a training step or an evaluator: rollouts of a few prompts, as tensors.

Axes: P prompts, S prompt tokens (left-padded), B rollouts, T response tokens (right-padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class RecordedStates:
    """Hidden states of the frozen base for a batch, recorded earlier.

    Attributes:
        depths: layers on the J axis; 0 is the token embeddings.
        prompt_PSJD: states at prompt positions, left-padded.
        response_BRJD: states at all response tokens but the last (R = T - 1), right-padded.
    """

    depths: tuple[int, ...]
    prompt_PSJD: Tensor
    response_BRJD: Tensor

    def to(self, device: torch.device | str) -> RecordedStates:
        """Return the same states on ``device``."""
        return RecordedStates(self.depths, self.prompt_PSJD.to(device), self.response_BRJD.to(device))


@dataclass
class HeldOutVerdicts:
    """How the held-out rollouts of a batch were drawn and judged, for the estimate of the distance to q*.

    Attributes:
        accepted_B: whether the rollout was accepted; one with a fractional verdict C was with probability C.
        draw_B: 0 for the rollouts that every prompt has; of a prompt's first accepted rollout after them, its number
            among all draws of the prompt.
        most: draws of a prompt of which none was accepted.
    """

    accepted_B: Tensor
    draw_B: Tensor
    most: int

    def to(self, device: torch.device | str) -> HeldOutVerdicts:
        """Return the same verdicts on ``device``."""
        return HeldOutVerdicts(self.accepted_B.to(device), self.draw_B.to(device), self.most)


@dataclass
class RolloutBatch:
    """Rollouts grouped by prompt, each prompt stored once.

    Attributes:
        prompt_ids_PS, prompt_mask_PS: prompt tokens and 1 where they are real, left-padded.
        prompt_of_row_B: index of each rollout's prompt on the P axis.
        response_BT, response_mask_BT: response tokens, the end-of-sequence token included when there is one.
        log_p_BT: full-base log-probability of each response token, in nats; None if unknown, as for references.
        score_B: oracle score, in [0, 1].
        weight_B: importance weight, 1 on average within a prompt.
        root_B: success rate R(c) of the row's prompt as estimated from its stored rollouts, strictly inside (0, 1).
        candidate_BTK, candidate_log_target_BTL, value_BT: for the lookahead objective, else None: the base's likeliest
            tokens at each position; the target log-probabilities of q for them and (last) for all other tokens
            together; and the value of the prefix relative to the mean over all tokens of all rollouts, 0 on padding.
        recorded: the frozen base's hidden states, if they were recorded with the rollouts.
        prompt_index_P: position of each prompt in the task's list of training or held-out prompts, if known.
        held_out: draws and verdicts of held-out rollouts; None in training.
        success: weighted mean of the scores of all rows that are trained on, the unit of the likelihood term.
        weight_total: sum of `weight_B` over the whole optimiser step, all processes and micro-batches included. A
            held-out batch with weight_total 0 is filler that keeps processes in step, and is not counted.
    """

    prompt_ids_PS: Tensor
    prompt_mask_PS: Tensor
    prompt_of_row_B: Tensor
    response_BT: Tensor
    response_mask_BT: Tensor
    log_p_BT: Tensor | None
    score_B: Tensor
    weight_B: Tensor
    root_B: Tensor
    candidate_BTK: Tensor | None = None
    candidate_log_target_BTL: Tensor | None = None
    value_BT: Tensor | None = None
    recorded: RecordedStates | None = None
    prompt_index_P: Tensor | None = None
    held_out: HeldOutVerdicts | None = None
    success: float = 1.0
    weight_total: float = 0.0

    @classmethod
    def unjudged(
        cls, prompt_ids_PS: Tensor, prompt_mask_PS: Tensor, prompt_of: Sequence[int], tokens: Sequence[Sequence[int]]
    ) -> RolloutBatch:
        """Build a batch from response tokens alone, without verdicts, on the device of the prompts."""
        device = prompt_ids_PS.device
        length_B = np.fromiter(map(len, tokens), int, len(tokens))
        mask_BT = np.arange(length_B.max(initial=0)) < length_B[:, None]
        response_BT = np.zeros(mask_BT.shape, dtype=np.int64)
        response_BT[mask_BT] = np.fromiter(chain.from_iterable(tokens), np.int64, int(length_B.sum()))
        one_B = torch.ones(len(tokens), device=device)
        return cls(
            prompt_ids_PS=prompt_ids_PS,
            prompt_mask_PS=prompt_mask_PS,
            prompt_of_row_B=torch.tensor(prompt_of, device=device),
            response_BT=torch.from_numpy(response_BT).to(device),
            response_mask_BT=torch.from_numpy(mask_BT.astype(np.int64)).to(device),
            log_p_BT=torch.zeros(response_BT.shape, device=device),
            score_B=one_B,
            weight_B=one_B,
            root_B=one_B / 2,
        )

    def to(self, device: torch.device | str) -> RolloutBatch:
        """Return the same batch with every tensor on ``device``."""
        moved: dict[str, Any] = {
            f.name: value.to(device) if hasattr(value := getattr(self, f.name), "to") else value for f in fields(self)
        }
        return RolloutBatch(**moved)

    @property
    def known_log_p_BT(self) -> Tensor:
        """``log_p_BT``, for callers that cannot do without.

        Raises:
            ValueError: the log-probabilities are unknown.
        """
        if self.log_p_BT is None:
            raise ValueError("the log-probabilities of these responses under the base are not known")
        return self.log_p_BT

    @property
    def num_rows(self) -> int:
        """The number of rollouts B."""
        return self.response_BT.shape[0]
