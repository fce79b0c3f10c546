"""A prompt: the conversation that the language model reads, and data for the oracle and the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Turn(NamedTuple):
    """One message of a conversation; roles are ``system``, ``user`` and ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """One prompt of a task.

    Attributes:
        id: unique within the task; rollouts are stored under it.
        text: the user's request, before the base model's chat template is applied.
        data: data that the oracle or the metrics need, e.g. ``{"concepts": [...], "references": [...]}``.
        turns: the conversation before the request, its system message included; empty for a request alone.
    """

    id: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()

    @property
    def references(self) -> list[str]:
        """The reference texts; empty if the task has none."""
        return list(self.data.get("references", ()))

    @property
    def rejected(self) -> list[str]:
        """The completions that the user's file labels as bad; empty if there are none."""
        return list(self.data.get("rejected", ()))

    @property
    def transcript(self) -> str:
        """The whole conversation as a text for readers: the request alone, or each message after its role."""
        if not self.turns:
            return self.text
        return "\n".join(f"{role}: {content}" for role, content in (*self.turns, Turn("user", self.text)))

    def messages(self, system: str | None = None) -> list[dict[str, str]]:
        """Return the conversation as a chat template takes it, with a system message in front if one is given."""
        first = [] if system is None else [Turn("system", system)]
        return [turn._asdict() for turn in (*first, *self.turns, Turn("user", self.text))]
