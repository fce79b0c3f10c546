"""Chat templates that hold today's date, rendered with one date for a whole run.

A template reads the clock by ``strftime_now(format)``. A prompt rendered on another day is another prompt, so all
processes of a run, and its continuations, render with the moment at which the run was created.
"""

from __future__ import annotations

import functools
from datetime import datetime
from typing import Any

CLOCK = "strftime_now"
DATE = "dinado_frozen_date"
"""Attribute of a tokenizer whose chat template has been frozen."""
_DIRECTIVES = "aAbBcdDeFgGHIjklmMnpPrRsStTuUVwWxXyYzZhC"


def freeze_date(tokenizer: Any, moment: datetime) -> None:
    """Make a tokenizer's ``apply_chat_template`` see ``moment`` as now; the template itself stays as it is."""
    try:
        template = tokenizer.get_chat_template()
    except (AttributeError, ValueError):  # there is none, or no default among several
        return
    if CLOCK in template:
        frozen = _with_clock(template, moment)
        tokenizer.apply_chat_template = functools.partial(tokenizer.apply_chat_template, chat_template=frozen)
        setattr(tokenizer, DATE, moment.isoformat())


def frozen_date(tokenizer: Any) -> str | None:
    """Return the moment that a tokenizer's chat template sees as now, in ISO format; None unless it is frozen."""
    return getattr(tokenizer, DATE, None)


def template_of(tokenizer: Any) -> str | None:
    """Return the chat template that ``apply_chat_template`` renders with, its date included; None if there is none."""
    frozen = getattr(tokenizer.apply_chat_template, "keywords", {}).get("chat_template")
    if frozen is not None:
        return str(frozen)
    try:
        return str(tokenizer.get_chat_template())
    except (AttributeError, ValueError):
        return None


def _with_clock(template: str, moment: datetime) -> str:
    """Return the template after a macro that hides the clock and fills in the parts of ``moment``."""
    filters = "".join(
        f"|replace({directive!r}, {moment.strftime(directive)!r})"
        for letter in _DIRECTIVES
        for directive in (f"%{letter}", f"%-{letter}")
        if moment.strftime(directive) not in (directive, letter)
    )
    # The empty expression keeps a line break at the start of the template, which would be trimmed after a block.
    macro = f"{{% macro {CLOCK}(format) %}}{{{{ format{filters}|replace('%%', '%') }}}}{{% endmacro %}}"
    return f"{macro}{{{{ '' }}}}{template}"
