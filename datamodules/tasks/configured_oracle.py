"""Construction of the oracle from the ``oracle`` section of the config."""

from __future__ import annotations

import dataclasses
from typing import Any

from dinado.errors import OracleError
from dinado.imports import imported
from dinado.oracles import Oracle
from workbench.settings.oracles import ORACLES, TASK, OracleConfig


def configured_oracle(settings: OracleConfig, task_oracle: Oracle | None) -> Oracle:
    """Build the configured oracle from the settings that belong to it.

    Args:
        task_oracle: the task's own oracle, if it has one.

    Raises:
        OracleError: a setting that this kind of oracle needs is missing or wrong.
    """
    if settings.name not in ORACLES:
        raise OracleError(f"oracle.name={settings.name} is unknown; choose {', '.join(ORACLES)}")
    kind, oracle = ORACLES[settings.name], task_oracle
    for key in kind.needs:
        if not getattr(settings, key):
            raise OracleError(f"oracle.name={kind.name} needs oracle.{key}")
    if kind.name != TASK:
        oracle = imported(kind.module)(**_own(settings))
    if oracle is None:
        others = ", ".join(name for name in ORACLES if name != TASK)
        raise OracleError(f"this task brings no oracle; set oracle.name to one of {others}")
    return ~oracle if settings.negate else oracle


def _own(settings: OracleConfig) -> dict[str, Any]:
    """Return the settings that belong to the chosen kind."""
    fields = dataclasses.fields(settings)
    return {f.name: getattr(settings, f.name) for f in fields if settings.name in f.metadata["about"].belongs_to}
