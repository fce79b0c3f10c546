"""Declaration of settings: default, help text, range, readers and role are metadata of the dataclass field."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Unread = Callable[[Any], str | None]
"""Given the whole configuration, the reason why a setting has no effect in it, or None where it has one."""

Role = Literal["target", "outcome", "seed", "execution"]
"""What a setting decides.

* ``target``: q* itself, or how it is measured; compared runs must agree on it.
* ``outcome``: what is trained; it tells variants of a method apart.
* ``seed``: nothing but the random draws; runs that differ in it are repetitions.
* ``execution``: where and how a run is executed and what it shows, not its result.
"""


class Range(NamedTuple):
    """A test that a value (each item of a list) must pass, and the message of the error."""

    accepts: Callable[[Any], bool]
    message: str


POSITIVE = Range(lambda x: 0 < x < math.inf, "must be above 0")
NOT_NEGATIVE = Range(lambda x: 0 <= x < math.inf, "must be 0 or more")
FINITE = Range(math.isfinite, "must be a finite number")
SHARE = Range(lambda x: 0 < x <= 1, "must be above 0 and at most 1")
FRACTION = Range(lambda x: 0 <= x <= 1, "must be from 0 to 1")
BELOW_ONE = Range(lambda x: 0 <= x < 1, "must be at least 0 and below 1")
ONE_OR_MORE = Range(lambda x: x >= 1, "must be 1 or more")
SEED = Range(lambda x: 0 <= x < 2**32, "must be from 0 to 4294967295")
VOCABULARY = Range(lambda x: x >= 2, "must be 2 or more, the end of sequence included")
WORD = Range(lambda x: x >= 1, "must be a token, not the end of sequence (0)")


@dataclass(frozen=True)
class About:
    """Metadata of a setting or a section.

    Attributes:
        help: what the setting means.
        range: which values are allowed; None for all of the type.
        role: the aspect of a run that it decides, see :data:`Role`; None takes the section's.
        agree: the aspect that compared runs must share, such as "the oracle"; empty where they may differ; None takes
            the section's.
        choices: allowed words, where they come from a table and not from a ``Literal``.
        belongs_to: values of the section's ``name`` that read the setting; empty for all.
        repeats: for a seed, how much of a run it draws anew: 3 the world, 2 the rollouts, 1 the training; 0 for others.
        unread: tells why the setting has no effect, see :data:`Unread`.
        place: whether it is a path, which belongs to the folder of the command that gave it.
        was: dotted key under which earlier versions knew the setting.
    """

    help: str = ""
    range: Range | None = None
    role: Role | None = None
    agree: str | None = None
    choices: tuple[str, ...] = ()
    belongs_to: tuple[str, ...] = ()
    repeats: int = 0
    unread: Unread | None = None
    place: bool = False
    was: str = ""


def setting(default: Any, help: str, range: Range | None = None, **about: Any) -> Any:
    """Make a dataclass field with its metadata; a list as default is copied for each instance.

    Args:
        about: further fields of :class:`About`.
    """
    metadata = {"about": About(" ".join(help.split()), range, **about)}
    if isinstance(default, list):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, **about: Any) -> Any:
    """Make a dataclass field that holds a section of settings.

    Args:
        about: fields of :class:`About` that hold for all settings in it, unless a setting says otherwise.
    """
    return field(default_factory=kind, metadata={"about": About(**about)})
