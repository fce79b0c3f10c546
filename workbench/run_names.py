"""Names of runs on W&B: the method, and the settings that the experiment's file does not have."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from workbench.settings import schema
from workbench.settings.config import Config
from workbench.settings.loaded import text

FAST_DEV_RUN = "--fast-dev-run"
LONGEST = 128
"""Most characters of a name or a group on W&B."""


def names(config: Config, experiment: str, words: Sequence[str]) -> tuple[str, str]:
    """Return name and group, such as ``dinado_soft lr=0.003 seed=2`` and ``<experiment> dinado_soft lr=0.003``.

    All seeds share the group. Values are those of the configuration, so that ``optim.lr=3e-3`` and ``optim.lr=0.003``
    give the same group.

    Args:
        experiment: name of the experiment; the settings of its file are left out of the names.
        words: the settings of the command line, ``key=value``, as in ``overrides.txt``.
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
    """Return name and group of the run in ``runs/<experiment>/<run_id>``, from its ``overrides.txt``."""
    file = folder / "overrides.txt"
    words = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return names(config, folder.resolve().parent.name, words)


def _is_said(key: str) -> bool:
    return key != "method" and schema.leaves()[key].role in ("target", "outcome")


def _short(key: str) -> str:
    """Return the last part of a key where it is unique among all settings, else the whole key."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in schema.leaves()) == 1 else key


def _cut(name: str, longest: int) -> str:
    """Shorten a name that is too long to its beginning and a digest of the whole."""
    if len(name) <= longest:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: longest - len(digest) - 4]}... {digest}"
