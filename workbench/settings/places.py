"""Relative paths in the settings of a run: they belong to the folder of the command that gave them."""

from __future__ import annotations

import json
from pathlib import Path

from workbench.settings import schema
from workbench.settings.loaded import Loaded

MADE = "data.cache"
"""The path that a run makes where it does not exist yet."""


def started_in(run: Path) -> Path | None:
    """Return the folder in which a run was started, None where it is not known or no longer exists."""
    try:
        folder = Path(json.loads((run / "env.json").read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if folder.is_dir() else None


def resolve_places(loaded: Loaded, run: Path) -> None:
    """Make the relative paths of a run absolute, in place, if this command runs elsewhere.

    A path of the command line belongs to the current folder, any other to the one in which the run was started, unless
    the run has been copied or moved from there. What does not exist there stays
    as it is: it is the name of a base or of data on a hub, or has moved along with the reader.
    """
    here, folder, run = Path.cwd(), started_in(run), run.resolve()
    if folder is None or folder == here:
        return
    if (folder / loaded.config.runs / run.parent.name / run.name).resolve() != run:
        return
    for key, leaf in schema.leaves().items():
        value = schema.get(loaded.config, key) if leaf.about.place else None
        if not value or (key == "base.name" and value == leaf.default) or Path(value).is_absolute():
            continue
        path = (here if loaded.provenance[key] == loaded.layers[-1] else folder) / value
        if path.exists() or (key == MADE and not (here / value).exists()):
            schema.put(loaded.config, key, str(path))
