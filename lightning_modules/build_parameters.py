"""Construction of the trained weights from the configuration."""

from __future__ import annotations

import dataclasses

from dinado.bases.causal import BaseLM
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
    kind: type[Parameterisation] = imported(row.module)
    return kind.inject(base, link=link, seed=config.seed, **settings)
