"""From a method's name to its LightningModule."""

from __future__ import annotations

from dinado.models.base_lm import BaseLM
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
    """The configured method around a base; adapters are injected into the base."""
    return METHODS[config.method](config, base)
