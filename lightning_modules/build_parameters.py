"""Construction of the trained weights from the configuration."""

from __future__ import annotations

import dataclasses
import re

from torch import nn

from dinado.bases.causal import BaseLM
from dinado.errors import ConfigError
from dinado.imports import imported
from dinado.objectives.reduction import Link
from dinado.parameters.parameterisation import Parameterisation
from workbench.settings.config import Config
from workbench.settings.derived import parameterisation_of


def build_parameters(config: Config, base: BaseLM, link: Link) -> Parameterisation:
    """Inject the trained weights into a base, or build them beside it, as configured.

    Args:
        link: how an oracle network's output becomes a score.

    Raises:
        UserError: the base has no place for them.
    """
    row = parameterisation_of(config)
    settings = dataclasses.asdict(config.own(row.settings)) if row.settings is not None else {}
    if "targets" in settings:
        _check_targets(base, settings["targets"])
    kind: type[Parameterisation] = imported(row.module)
    return kind.inject(base, link=link, seed=config.seed, **settings)


def _check_targets(base: BaseLM, targets: str | list[str]) -> None:
    """Refuse adapters on an embedding, which reads token ids and not states."""
    for name, module in base.model.named_modules():
        if not isinstance(module, nn.Embedding):
            continue
        if isinstance(targets, str):
            hit = re.fullmatch(targets, name) is not None
        else:
            hit = any(f".{name}".endswith(f".{target}") for target in targets)
        if hit:
            raise ConfigError(
                f"lora.targets={targets}: {name} is an embedding; name linear layers, or take all-linear, or train "
                "everything with parameters=full"
            )
