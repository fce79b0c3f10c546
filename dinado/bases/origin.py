"""The name and the licence that a pretrained model has on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dinado.bases import smollm2

CARD = "README.md"


class Origin(NamedTuple):
    """The origin of a base, as far as it is known.

    Attributes:
        hub_name: its name on the hub; None for a folder.
        licence: the fields of its card that tell the licence; empty where it has no card.
    """

    hub_name: str | None = None
    licence: dict[str, str] = {}


def origin_of(name: str, revision: str | None = None) -> Origin:
    """Return the origin of ``base.name``, with the licence that its own card states."""
    if name == smollm2.NAME:
        return Origin(smollm2.HUB_NAME, {"license": smollm2.LICENCE})
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Origin(None, _licence(folder / CARD))
    from huggingface_hub import hf_hub_download

    try:
        return Origin(name, _licence(Path(hf_hub_download(name, CARD, revision=revision))))
    except Exception:  # without a network or a card it stays unknown; the hub's client fails in many ways
        return Origin(name)


def _licence(card: Path) -> dict[str, str]:
    from huggingface_hub import ModelCard

    try:
        data: dict[str, Any] = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError):
        return {}
    return {
        key: str(data[key]) for key in ("license", "license_name", "license_link") if isinstance(data.get(key), str)
    }
