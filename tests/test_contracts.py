"""Every row of the tables, and the bases of the tests, keep their contracts (tests/contracts).

``python -m pytest tests/test_contracts.py -k NAME`` checks one of them. A new row is checked without a change here.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from contracts import base, method, oracle, parameters, samples, task
from helpers import base_lm

from dinado.errors import UserError
from dinado.imports import imported
from dinado.parameters.parameterisation import Parameterisation
from dinado.parameters.policy import Policy
from lightning_modules.build_parameters import build_parameters
from lightning_modules.rollout_method import RolloutMethod
from lightning_modules.value_method import ValueMethod
from workbench.settings import derived, loader
from workbench.settings.config import Config
from workbench.settings.methods import METHODS
from workbench.settings.objective import ObjectiveSettings
from workbench.settings.oracles import ORACLES, TASK, OracleConfig
from workbench.settings.parameterisations import PARAMETERISATIONS
from workbench.settings.tasks import TASKS

BASES = ("markov", "gpt2", "llama")
EXPERIMENT = {"gpt2": "exact_gpt2", "markov": "exact_world"}
"""An experiment for each base that a method is tried on: one whose weights can be adapted, and one without any."""


def named(check: Any) -> str:
    """Return the name of a check or of a case, as pytest shows it."""
    return check.__name__ if callable(check) else str(check)


@cache
def config_of(experiment: str, *words: str) -> Config:
    """Return the configuration of an experiment."""
    return loader.load(experiment, words).config


def trainable() -> list[tuple[str, str, str]]:
    """List every method with each parameterisation that it allows, on a base with weights to adapt and on one without.

    Both are found by the rules that check a configuration.
    """
    found = []
    for name in METHODS:
        for on, experiment in EXPERIMENT.items():
            allowed = derived.allowed_parameters(config_of(experiment, f"method={name}"))
            found += [(name, kind, on) for kind in allowed]
    return found


@pytest.mark.parametrize("check", base.CHECKS, ids=named)
@pytest.mark.parametrize("name", BASES)
def test_base(name: str, check: Any) -> None:
    check(lambda temperature: base_lm(name, temperature=temperature))


@pytest.mark.parametrize("check", oracle.CHECKS, ids=named)
@pytest.mark.parametrize("name", ORACLES)
def test_oracle(name: str, check: Any) -> None:
    check(samples.oracle_case(name))


@pytest.mark.parametrize("name", [name for name in ORACLES if name != TASK])
def test_oracle_row(name: str) -> None:
    """The settings that belong to a kind are the arguments of its class, no more and no less."""
    own = {field.name for field in dataclasses.fields(OracleConfig) if name in field.metadata["about"].belongs_to}
    assert set(inspect.signature(imported(ORACLES[name].module)).parameters) == own
    assert set(ORACLES[name].needs) <= own


@pytest.mark.parametrize("check", parameters.CHECKS, ids=named)
@pytest.mark.parametrize("on", ["gpt2", "llama"])
@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_parameterisation(name: str, on: str, check: Any) -> None:
    row = PARAMETERISATIONS[name]
    config = config_of("exact_gpt2", f"method={'sft' if row.policy else 'nado'}", f"parameters={name}")

    def inject(base: Any, seed: int) -> Parameterisation:
        return build_parameters(dataclasses.replace(config, seed=seed), base, "logsigmoid")

    try:
        inject(base_lm(on), 0)
    except UserError as reason:
        assert on != "gpt2" and "\n" not in str(reason), "a GPT-2 has a place for everything"
        pytest.skip(str(reason))
    check(parameters.ParametersCase(lambda: base_lm(on, temperature=1.3), inject, row.policy))


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_parameterisation_row(name: str) -> None:
    """The class is what the row says it is, and takes the settings of its section."""
    row = PARAMETERISATIONS[name]
    kind = imported(row.module)
    assert issubclass(kind, Policy if row.policy else Parameterisation) and kind.is_policy == row.policy
    settings = set() if row.settings is None else {field.name for field in dataclasses.fields(row.settings)}
    assert set(inspect.signature(kind.inject).parameters) == {"base", "link", "seed"} | settings
    assert row.settings is None or config_of("exact_gpt2").own(row.settings) is getattr(config_of("exact_gpt2"), name)


@pytest.mark.parametrize("check", method.CHECKS, ids=named)
@pytest.mark.parametrize(("name", "kind", "on"), trainable(), ids=lambda word: word)
def test_method(name: str, kind: str, on: str, check: Any) -> None:
    config = config_of(EXPERIMENT[on], f"method={name}", f"parameters={kind}")
    check(method.MethodCase(config, lambda: base_lm(on, temperature=1.3)))


@pytest.mark.parametrize("name", METHODS)
def test_method_row(name: str) -> None:
    """The class is what the row says it is, and the row names sections and parameterisations that exist."""
    row = METHODS[name]
    assert issubclass(imported(row.module), ValueMethod if row.predicts_r else RolloutMethod)
    assert set(row.blocks) <= {field.name for field in dataclasses.fields(ObjectiveSettings)}
    assert row.default in derived.allowed_parameters(config_of("exact_gpt2", f"method={name}"))
    assert row.norm_head is None or "norm" in row.blocks
    objective = config_of("exact_gpt2").objective
    assert row.settings is None or objective.own(row.settings) is getattr(objective, name)


@pytest.mark.parametrize("check", task.CHECKS, ids=named)
@pytest.mark.parametrize("name", TASKS)
def test_task(name: str, check: Any, tmp_path: Path) -> None:
    files = task.sample_data(tmp_path)
    config = Config()
    config.task.name, config.task.path, config.data.val_prompts = name, files.get(name), 2
    check(config)
