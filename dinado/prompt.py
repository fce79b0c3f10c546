"""A prompt: the text that the language model reads, and data for the oracle and the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One prompt of a task.

    Attributes:
        id: unique within the task; rollouts are stored under it.
        text: the user's request, before the base model's chat template is applied.
        data: data that the oracle or the metrics need, e.g. ``{"concepts": [...], "references": [...]}``.
    """

    id: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """The reference texts; empty if the task has none."""
        return list(self.data.get("references", ()))
