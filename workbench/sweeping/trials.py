"""Trials: each combination of a sweep as a command line, checked against the schema, with a unique id."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinado.errors import ConfigError
from workbench.settings import loader, schema
from workbench.sweeping.definition import Definition

CHECKED = 128
"""Most combinations of ends that are checked, where the list of trials is not known in advance."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        id: digest of its resolved settings.
        settings: the swept settings and their values.
        words: arguments of ``train.py``, in the form that a W&B agent uses.
        run: folder of its run.
        steps: optimiser steps.
    """

    id: str
    settings: dict[str, Any]
    words: tuple[str, ...]
    run: Path
    steps: int

    @property
    def label(self) -> str:
        """The swept settings as ``key=value`` words."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items())


class Maker:
    """A factory of trials.

    Args:
        definition: the sweep.
        overrides: settings of the command line, for every trial.

    Raises:
        ConfigError: one of ``overrides`` is swept.
    """

    def __init__(self, definition: Definition, overrides: Sequence[str] = ()) -> None:
        self.definition = definition
        self.fixed = (*definition.fixed, *overrides)
        swept = {parameter.key.replace("-", "_") for parameter in definition.parameters}
        for word in overrides:
            if (key := word.removeprefix("--").partition("=")[0].replace("-", "_")) in swept:
                raise ConfigError(f"command line: {word}: {key} is swept by {definition.label}")

    @property
    def folder(self) -> Path:
        """The folder of the sweep, beside the runs of its trials."""
        return self.make(next(_corners(self.definition))).run.parents[1] / "sweeps" / self.definition.name

    def make(self, settings: Mapping[str, Any]) -> Trial:
        """Make the trial with these values.

        Raises:
            ConfigError: the schema or the rules refuse them.
        """
        args = [f"--{key}={value}" for key, value in settings.items()]
        try:
            loaded = loader.load(self.definition.experiment, [*self.fixed, *args])
        except ConfigError as error:
            refused = str(error).removeprefix(f"{loader.COMMAND_LINE}: ")
            chosen = " ".join(word.removeprefix("--") for word in args)
            raise ConfigError(f"{self.definition.label}: {refused} (trial {chosen})") from None
        config = loaded.config
        # The id covers the settings that decide the outcome. It leaves out defaults, so that a setting added to the
        # schema changes no id.
        swept = {parameter.key.replace("-", "_") for parameter in self.definition.parameters}
        known = {key: leaf for key, leaf in schema.leaves().items() if leaf.role != "execution" or key in swept}
        kept = {key: value for key, leaf in known.items() if (value := schema.get(config, key)) != leaf.default}
        name = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:10]
        run = Path(config.runs) / loaded.experiment / f"{self.definition.name}-{name}"
        words = (self.definition.experiment, *self.fixed, *args)
        return Trial(name, dict(settings), words, run, config.optim.steps)


def trials(maker: Maker, count: int | None = None, seed: int = 0) -> list[Trial]:
    """Make and check all trials of a grid or of a random search, in order.

    Draw number i depends on the seed, i and the setting's name alone, so that a larger count only adds trials.

    Raises:
        ConfigError: the schema or the rules refuse a trial or an end of a range.
    """
    definition = maker.definition
    keys = [parameter.key for parameter in definition.parameters]
    if definition.method == "grid":
        rows = itertools.product(*(parameter.grid() for parameter in definition.parameters))
        found = [maker.make(dict(zip(keys, row, strict=True))) for row in itertools.islice(rows, count)]
    else:
        check_ends(maker)
        draws = range(count or 0)
        found = [maker.make({p.key: p.at(draw(seed, i, p.key)) for p in definition.parameters}) for i in draws]
    return list({trial.id: trial for trial in found}.values())


def draw(seed: int, number: int, key: str) -> float:
    """Draw a number in (0, 1) that depends on the arguments alone."""
    return max(random.Random(f"{seed} {number} {key}").random(), 1e-12)


def check_ends(maker: Maker) -> None:
    """Check the ends of every range, each at least once and in combination up to a limit.

    Raises:
        ConfigError: the schema or the rules refuse a combination.
    """
    for row in {repr(row): row for row in _corners(maker.definition)}.values():
        maker.make(row)


def _corners(definition: Definition) -> Iterator[dict[str, Any]]:
    keys = [parameter.key for parameter in definition.parameters]
    ends = [parameter.samples() for parameter in definition.parameters]
    longest = max(map(len, ends))
    for number in range(longest):
        yield {key: values[number % len(values)] for key, values in zip(keys, ends, strict=True)}
    for row in itertools.islice(itertools.product(*ends), CHECKED):
        yield dict(zip(keys, row, strict=True))
