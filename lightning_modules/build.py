"""From a method's name to its LightningModule."""

from __future__ import annotations

from dinado.models.acceleration import checkpoint_layers, compile_layers
from dinado.models.base_lm import BaseLM
from dinado.models.scores import PolicyScores
from experiments.config import Config
from lightning_modules.base import OracleMethod
from lightning_modules.dinado_hard import DinadoHard
from lightning_modules.dinado_merge import DinadoMerge
from lightning_modules.dinado_soft import DinadoSoft
from lightning_modules.nado import Nado
from lightning_modules.sft import Sft

METHODS: dict[str, type[OracleMethod]] = {
    "nado": Nado,
    "dinado_hard": DinadoHard,
    "dinado_soft": DinadoSoft,
    "dinado_merge": DinadoMerge,
    "sft": Sft,
}


def build_method(config: Config, base: BaseLM) -> OracleMethod:
    """The configured method around a base; adapters are injected into the base.

    Raises:
        UserError: ``trainer.checkpointing`` for a base without transformer layers.
    """
    method = METHODS[config.method](config, base)
    if config.trainer.compile:
        compile_layers(method)
    if config.trainer.checkpointing and isinstance(method.scores, PolicyScores):
        checkpoint_layers(method.scores.policy)
    return method
