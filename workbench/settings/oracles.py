"""The table of oracles, and the settings of the ``oracle`` section, without importing torch.

An oracle is a class in a file of its own (dinado/oracles/) and a row here; settings of its own stand in
:class:`OracleConfig` and reach the class as keyword arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.settings.fields import NOT_NEGATIVE, setting

TASK = "task"
"""Value of ``oracle.name`` that takes the oracle which the task brings."""


@dataclass(frozen=True)
class OracleKind:
    """A row of the table of oracles.

    Attributes:
        name: value of the setting ``oracle.name``.
        summary: one line.
        module: ``module:callable`` that makes the oracle from its settings; empty for the task's own.
        needs: settings that must be given.
    """

    name: str
    summary: str
    module: str = ""
    needs: tuple[str, ...] = ()


ORACLES: dict[str, OracleKind] = {
    row.name: row
    for row in (
        OracleKind(TASK, "the oracle that the task brings"),
        OracleKind("lexical", "words that must occur, in any inflection", "dinado.oracles.lexical:LexicalOracle"),
        OracleKind("regex", "a regular expression", "dinado.oracles.regex:RegexOracle", needs=("pattern",)),
        OracleKind("length", "a number of words", "dinado.oracles.length:LengthOracle"),
        OracleKind("user", "a function of yours", "dinado.oracles.user:load_oracle", needs=("function",)),
    )
}


@dataclass
class OracleConfig:
    """The oracle, which judges a finished text."""

    name: str = setting(
        TASK, "`task` takes the oracle that the task brings; the others replace it.", choices=tuple(ORACLES)
    )
    function: str | None = setting(
        None,
        "Importable `module:callable`, a function (prompts, texts) -> scores in [0, 1] or an Oracle.",
        belongs_to=("user",),
    )
    pattern: str | None = setting(None, "Pattern searched in the text.", belongs_to=("regex",))
    ignore_case: bool = setting(True, "Match without regard to case.", belongs_to=("regex",))
    words: list[str] = setting(
        [],
        "Words that must all occur, in any inflection; empty takes the prompt's `concepts`.",
        belongs_to=("lexical",),
    )
    min_words: int = setting(0, "Fewest words allowed.", NOT_NEGATIVE, belongs_to=("length",))
    max_words: int | None = setting(None, "Most words allowed.", NOT_NEGATIVE, belongs_to=("length",))
    negate: bool = setting(False, "Train for the opposite of the oracle.")
