"""A user's own oracle, named as ``module:callable``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from dinado.errors import OracleError
from dinado.oracles.fingerprint import source_of
from dinado.oracles.imported_code import imported_files
from dinado.oracles.oracle import Oracle
from dinado.prompt import Prompt


def load_oracle(function: str) -> Oracle:
    """Import an oracle.

    Args:
        function: ``module:name``. The name stands for an :class:`Oracle`, a class of oracles without arguments, or a
            function ``(prompts, texts) -> scores``. The current directory is importable.

    Raises:
        OracleError: the name is malformed, cannot be imported, or names something that cannot score texts.
    """
    value = _resolve(function)
    if inspect.isclass(value):
        try:
            value = value()
        except (Exception, SystemExit) as error:
            raise OracleError(
                f"oracle.function {function!r} is a class that cannot be made without arguments: {_short(error)}"
            ) from error
    if isinstance(value, Oracle):
        return value
    _check_signature(function, value)
    return FunctionOracle(function, value)


class FunctionOracle(Oracle):
    """A function of prompts and texts, made by :func:`load_oracle`; pickled by name, so it may close over anything."""

    def __init__(
        self, spec: str, function: Callable[[Sequence[Prompt], Sequence[str]], Tensor | Sequence[float]]
    ) -> None:
        self.spec = spec
        self.function = function

    @property
    def name(self) -> str:
        return self.spec

    def settings(self) -> Any:
        """Return the name, the file it is imported from, the file that defines it, and the files that these import."""
        code = self.function if inspect.isroutine(self.function) else type(self.function)
        module = self.spec.partition(":")[0]
        helpers = imported_files(module)
        return self.spec, source_of(sys.modules[module]), source_of(code), *([helpers] if helpers else [])

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor | Sequence[float]:
        return self.function(prompts, texts)

    def __reduce__(self) -> tuple[Callable[[str], Oracle], tuple[str]]:
        return load_oracle, (self.spec,)


def _resolve(spec: str) -> Any:
    module_name, separator, path = spec.partition(":")
    if not (separator and module_name and path):
        raise OracleError(f"oracle.function {spec!r} is not of the form module:callable, such as my_oracle:score")
    value: Any = _import(spec, module_name)
    for attribute in path.split("."):
        if not hasattr(value, attribute):
            file = getattr(sys.modules[module_name], "__file__", None) or module_name
            raise OracleError(f"oracle.function {spec!r}: no {attribute!r} in {file}")
        value = getattr(value, attribute)
    return value


def _import(spec: str, module_name: str) -> ModuleType:
    # The current directory goes last, so that a user's file never hides an installed package.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise OracleError(
                f"oracle.function {spec!r}: no module {error.name!r} in {os.getcwd()} or among the installed packages"
            ) from error
        raise OracleError(f"oracle.function {spec!r}: importing {module_name} failed: {_short(error)}") from error


def _check_signature(spec: str, function: Any) -> None:
    if not callable(function):
        raise OracleError(f"oracle.function {spec!r} is a {type(function).__name__}, which cannot be called")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables have no signature
        return
    try:
        signature.bind((), ())
    except TypeError as error:
        raise OracleError(f"oracle.function {spec!r} must take (prompts, texts), not {signature}") from error


def _short(error: BaseException) -> str:
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"{what}, which ends a program; move it under `if __name__`" if isinstance(error, SystemExit) else what
