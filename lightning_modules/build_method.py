"""Construction of the configured method's LightningModule."""

from __future__ import annotations

from dinado.bases.acceleration import checkpoint_layers, compile_layers
from dinado.bases.causal import BaseLM
from dinado.imports import imported
from lightning_modules.rollout_method import RolloutMethod
from workbench.settings.config import Config
from workbench.settings.derived import method_of, parameterisation_of
from workbench.settings.optimiser_table import OPTIMISERS


def check_rows(config: Config) -> None:
    """Import what the rows of the configured method, parameterisation and optimiser name, before anything is sampled.

    Raises:
        ConfigError: a row names a module or a class that does not exist.
    """
    for path in (method_of(config).module, parameterisation_of(config).module, OPTIMISERS[config.optim.name]):
        imported(path)


def build_method(config: Config, base: BaseLM) -> RolloutMethod:
    """Build the configured method around a base; adapters are injected into the base.

    Raises:
        UserError: ``trainer.checkpointing`` for a base without transformer layers.
    """
    kind: type[RolloutMethod] = imported(method_of(config).module)
    method = kind(config, base)
    if config.trainer.compile:
        compile_layers(method)
    if config.trainer.checkpointing and (model := method.scores.recomputable()) is not None:
        checkpoint_layers(model)
    return method
