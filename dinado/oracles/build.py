"""From settings to an oracle."""

from __future__ import annotations

from collections.abc import Sequence

from dinado.errors import OracleError
from dinado.oracles.base import Oracle
from dinado.oracles.length import LengthOracle
from dinado.oracles.lexical import LexicalOracle
from dinado.oracles.regex import RegexOracle
from dinado.oracles.user import load_oracle


def build_oracle(
    name: str,
    task_oracle: Oracle | None,
    *,
    function: str | None = None,
    pattern: str | None = None,
    ignore_case: bool = True,
    words: Sequence[str] = (),
    min_words: int = 0,
    max_words: int | None = None,
    negate: bool = False,
) -> Oracle:
    """The oracle that the ``oracle`` section asks for.

    Args:
        name: ``task`` (the oracle that the task brings), ``lexical``, ``regex``, ``length`` or ``user``.
        task_oracle: the task's oracle, if it has one.
        negate: return ``~oracle``.
        function, pattern, ignore_case, words, min_words, max_words: settings of the kinds above.

    Raises:
        OracleError: a setting that this kind of oracle needs is missing or wrong.
    """
    oracle = task_oracle
    if name == "lexical":
        oracle = LexicalOracle(words)
    elif name == "regex":
        oracle = RegexOracle(_needed("pattern", pattern, name), ignore_case)
    elif name == "length":
        oracle = LengthOracle(min_words, max_words)
    elif name == "user":
        oracle = load_oracle(_needed("function", function, name))
    elif name != "task":
        raise OracleError(f"oracle.name={name} is unknown; choose task, lexical, regex, length or user")
    if oracle is None:
        raise OracleError("this task brings no oracle; set oracle.name to lexical, regex, length or user")
    return ~oracle if negate else oracle


def _needed(key: str, value: str | None, name: str) -> str:
    if not value:
        raise OracleError(f"oracle.name={name} needs oracle.{key}")
    return value
