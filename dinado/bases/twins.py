"""Bases that share their weights, so that several runs on one base take the memory of one."""

from __future__ import annotations

import copy

from dinado.bases.causal import BaseLM
from dinado.errors import UserError


def check_plain(base: BaseLM) -> None:
    """Refuse a base with adapters: what is injected or copied next would hold them too.

    Raises:
        UserError: adapters have been injected into it.
    """
    if base.has_adapters:
        raise UserError(
            f"{base.name} has adapters of another run; take a twin(base) for each, made before any adapters"
        )


def twin(base: BaseLM) -> BaseLM:
    """Return a base of its own modules with the same weight tensors: adapters in one are not in the other.

    Folding adapters into one changes the weights of all.

    Raises:
        UserError: the base has adapters.
    """
    check_plain(base)
    shared = (*base.model.parameters(), *base.model.buffers(), base.tokenizer)
    return copy.deepcopy(base, {id(one): one for one in shared})
