"""Resolution of a base's name in the config to an argument of ``from_pretrained``."""

from __future__ import annotations

from pathlib import Path

from dinado.bases import smollm2


def resolve_base(name: str, cache: Path | str) -> str:
    """Return the path or hub name of a base model.

    ``smollm2-135m-instruct`` becomes its converted folder, made on first use under ``<cache>/models``; an existing
    folder becomes its absolute path; any other name is a hub name and is returned unchanged.

    Raises:
        DataError: the model could not be fetched.
    """
    if name == smollm2.NAME:
        return str(smollm2.smollm2_folder(Path(cache)))
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name
