"""From the name in a config to something ``from_pretrained`` understands."""

from __future__ import annotations

from pathlib import Path

from dinado.bases import smollm2


def resolve_base(name: str, cache: Path | str) -> str:
    """Path or hub name of a base model.

    ``smollm2-135m-instruct`` becomes its converted folder, made on first use under ``<cache>/models``; an existing
    folder becomes its absolute path; anything else is taken as a hub name and returned unchanged.

    Raises:
        DataError: the model had to be fetched and could not be.
    """
    if name == smollm2.NAME:
        return str(smollm2.smollm2_folder(Path(cache)))
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name
