"""What a run is called on a page of many: its method, and what was set besides the experiment's file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from workbench.settings import schema
from workbench.settings.config import Config
from workbench.settings.loaded import text

FAST_DEV_RUN = "--fast-dev-run"
LONGEST = 128
"""Characters that W&B takes for a name or a group."""


def names(config: Config, experiment: str, words: Sequence[str]) -> tuple[str, str]:
    """Name and group: ``dinado_soft lr=0.003 seed=2``, and ``<experiment> dinado_soft lr=0.003`` for all of its seeds.

    Values are those of the configuration, so that ``optim.lr=3e-3`` and ``optim.lr=0.003`` come to one group.

    Args:
        experiment: name of the experiment, whose own settings go without saying.
        words: the settings of the command line, ``key=value``, as ``overrides.txt`` keeps them.
    """
    given = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in words}
    keys = [key for key in schema.leaves() if key in given and _is_said(key)]
    what = [config.method, *(f"{_short(key)}={text(schema.get(config, key))}" for key in keys)]
    if FAST_DEV_RUN in words:
        what.append("fast-dev-run")
    seeds = f" seed={config.seed}"
    if config.rollouts.seed != schema.leaves()["rollouts.seed"].default:
        seeds += f" rollouts.seed={config.rollouts.seed}"
    return _cut(" ".join(what), LONGEST - len(seeds)) + seeds, _cut(" ".join([experiment, *what]), LONGEST)


def names_of_run(config: Config, folder: Path) -> tuple[str, str]:
    """The same for the run in ``runs/<experiment>/<run_id>``, from the overrides it keeps."""
    file = folder / "overrides.txt"
    words = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return names(config, folder.resolve().parent.name, words)


def _is_said(key: str) -> bool:
    return key != "method" and schema.leaves()[key].role in ("target", "outcome")


def _short(key: str) -> str:
    """The last word of a key where no other setting ends in it."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in schema.leaves()) == 1 else key


def _cut(name: str, longest: int) -> str:
    """A name that is too long keeps its beginning, and a digest of all of it."""
    if len(name) <= longest:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: longest - len(digest) - 4]}... {digest}"
