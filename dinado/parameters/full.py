"""All weights: a copy of the base whose every parameter is trained."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import nn

from dinado.bases.architecture import quantised_by
from dinado.bases.causal import BaseLM
from dinado.bases.twins import check_plain
from dinado.errors import UserError
from dinado.objectives.reduction import Link
from dinado.parameters.policy import Policy


class Full(Policy):
    """A trainable copy of the whole base as policy, beside the frozen base."""

    @classmethod
    def inject(cls, base: BaseLM, *, link: Link, seed: int) -> Self:
        """Copy the base in float32, because steps are too small for shorter types; nothing is initialised at random.

        Raises:
            UserError: the base is quantised, or has adapters.
        """
        check_plain(base)
        if quantisation := quantised_by(base.model):
            raise UserError(
                f"parameters=full: {base.name} is quantised ({quantisation}) and its weights cannot be trained; take "
                "parameters=lora"
            )
        policy = copy.deepcopy(base)
        if base.head.weight_VD.dtype.itemsize < 4:
            policy.model.float()
        policy.model.requires_grad_(True)
        return cls(base, policy)

    def fold(self) -> nn.Module:
        """Return the copy, which is a plain model already."""
        model: nn.Module = self.policy.model
        return model

    def change_norm(self) -> float:
        """Compute the Frobenius norm of the difference from the base."""
        pairs = zip(self.policy.model.parameters(), self.base.model.parameters(), strict=True)
        return float(torch.stack([(a.detach() - b.detach()).float().square().sum() for a, b in pairs]).sum().sqrt())
