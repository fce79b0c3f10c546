"""Sample settings with which the rows of the table of oracles are put through their contract.

A row whose defaults make an oracle needs none: a second oracle is made by changing the first of its settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from contracts.oracle import OracleCase
from datamodules.tasks.configured_oracle import configured_oracle
from dinado.oracles import Oracle, TokenOracle, token_dfa
from dinado.prompt import Prompt
from workbench.settings.oracles import ORACLES, TASK, OracleConfig

SAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "regex": ({"pattern": "dog|7"}, {"pattern": "dog|7", "ignore_case": False}),
    "length": ({"min_words": 2, "max_words": 5}, {"min_words": 2, "max_words": 4}),
    "user": ({"function": "contracts.samples:shouts"}, {"function": "contracts.samples:asks"}),
}
"""Two settings of each kind that cannot be made from the defaults."""


def oracle_case(name: str) -> OracleCase:
    """Return the case of a row, ``task`` standing for the exact world's oracle."""
    if name == TASK:
        return OracleCase(lambda: _tokens([3]), lambda: _tokens([2]), texts=("", "1 3", "2 2 1", "3"))
    first, second = SAMPLES.get(name) or ({}, _changed(name))
    return OracleCase(lambda: _made(name, first), None if first == second else lambda: _made(name, second))


def shouts(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[bool]:
    """Tell which texts have an exclamation mark."""
    return ["!" in text for text in texts]


def asks(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[bool]:
    """Tell which texts have a question mark."""
    return ["?" in text for text in texts]


def _tokens(required: list[int]) -> Oracle:
    return TokenOracle(token_dfa(5, required, [], None))


def _made(name: str, settings: dict[str, Any]) -> Oracle:
    return configured_oracle(OracleConfig(name=name, **settings), None)


def _changed(name: str) -> dict[str, Any]:
    """Return another value of a kind's first setting; nothing for a kind without settings."""
    for field in dataclasses.fields(OracleConfig):
        if name in field.metadata["about"].belongs_to:
            value = getattr(OracleConfig(), field.name)
            changed = not value if isinstance(value, bool) else [*value, "x"] if isinstance(value, list) else None
            return {field.name: value + type(value)(1) if changed is None else changed}
    assert not ORACLES[name].needs, f"add two settings of oracle.name={name} to SAMPLES"
    return {}
