"""Conversations in a user's file: a list of messages ``{"role": ..., "content": ...}`` in place of a text."""

from __future__ import annotations

from typing import Any, NamedTuple

from datamodules.tasks.json_rows import Row, field_of, not_blank
from dinado.errors import DataError
from dinado.prompt import Prompt, Turn

ROLES = ("system", "user", "assistant")
MESSAGES = "messages"
"""Field of a whole conversation, read where a row has no prompt."""


class Request(NamedTuple):
    """What a row asks, and the assistant's answer to it where the conversation holds one."""

    text: str
    turns: tuple[Turn, ...] = ()
    answer: str | None = None


def request_of(row: Row, field: str, place: str, setting: str) -> Request:
    """Return the request of a row: a text or a conversation in ``field``, or a conversation in ``messages``.

    Raises:
        DataError: the row has neither, or it is no conversation that a user asks the last question of.
    """
    field = MESSAGES if field not in row and MESSAGES in row else field
    value = field_of(row, field, place, setting)
    if not isinstance(value, list):
        return Request(not_blank(value, field, place))
    turns = [_turn(message, f"{place}: field {field!r}, message {number}") for number, message in enumerate(value, 1)]
    answer = turns.pop().content if turns and turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        raise DataError(f"{place}: field {field!r} must end with a message of the user, or an answer to one")
    if any(turn.role == "system" for turn in turns[1:]):
        raise DataError(f"{place}: field {field!r} has a system message that is not its first")
    return Request(turns[-1].content, tuple(turns[:-1]), answer)


def completion_of(row: Row, field: str, place: str) -> str:
    """Return the completion in a field: a text, or a conversation of one message of the assistant."""
    value = row[field]
    if isinstance(value, list):
        turns = [_turn(message, f"{place}: field {field!r}, message {n}") for n, message in enumerate(value, 1)]
        if [turn.role for turn in turns] != ["assistant"]:
            raise DataError(f"{place}: field {field!r} must be a text or one message of the assistant")
        return turns[0].content
    return not_blank(value, field, place)


def row_of(prompt: Prompt) -> Any:
    """Return a prompt as a file holds it: a text, or a list of messages."""
    return prompt.messages() if prompt.turns else prompt.text


def _turn(message: Any, place: str) -> Turn:
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise DataError(f'{place} must be {{"role": ..., "content": ...}}')
    if message["role"] not in ROLES:
        raise DataError(f"{place}: role {message['role']!r} is none of {', '.join(ROLES)}")
    return Turn(message["role"], not_blank(message["content"], "content", place))
