"""Stable hashes of settings and code, equal in every process and on every machine.

Python's own ``hash`` is salted per process and ``pickle`` depends on the order of sets, so values are traversed
and serialised in one canonical form.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dinado.errors import OracleError

_PACKAGE = __name__.partition(".")[0]


def digest(*values: Any) -> str:
    """Return a hexadecimal SHA-256 over values: numbers, strings, containers, tensors, modules, dataclasses, code.

    Raises:
        OracleError: a value is of a kind that has no stable content, such as a generator or a lock.
    """
    try:
        return hashlib.sha256(_canonical(values)).hexdigest()
    except RecursionError:
        raise OracleError("cannot fingerprint an object without end; define settings() on the oracle") from None


def source_of(value: Callable[..., Any] | ModuleType) -> bytes:
    """Return the file of a module, or of the module that defines a function or class; empty for this package.

    The whole file is used, because the behaviour of a user's oracle also depends on the helpers and constants
    around it. Code of this package is identified by its name and settings, so that upgrades keep old rollouts.
    For code without a file, the source is used if the interpreter has it (a notebook).
    """
    module_name = value.__name__ if isinstance(value, ModuleType) else value.__module__ or ""
    if module_name.partition(".")[0] == _PACKAGE:
        return b""
    try:
        return Path(inspect.getsourcefile(value) or "").read_bytes()
    except (OSError, TypeError):
        pass
    try:
        return inspect.getsource(value).encode()
    except (OSError, TypeError):
        return b""


def _canonical(value: Any, outer: tuple[int, ...] = ()) -> bytes:
    """Serialise type, length and content of a value; the length keeps neighbouring values apart.

    Args:
        outer: identities of the objects that the value is a part of.
    """
    content = _content(value, outer)
    return f"{type(value).__qualname__}:{len(content)}:".encode() + content


def _content(value: Any, outer: tuple[int, ...]) -> bytes:
    if id(value) in outer:
        return f"inside itself {len(outer) - outer.index(id(value))}".encode()
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path)):
        return repr(value).encode()
    if isinstance(value, Mapping):
        inside = (*outer, id(value))
        return b"".join(sorted(_canonical(key, inside) + _canonical(item, inside) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return b"".join(_canonical(item, (*outer, id(value))) for item in value)
    if isinstance(value, (set, frozenset)):
        return b"".join(sorted(_canonical(item, (*outer, id(value))) for item in value))
    if isinstance(value, re.Pattern):
        return _canonical((value.pattern, value.flags))
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype}{tuple(value.shape)}".encode() + raw
    if isinstance(value, nn.Module):
        return _canonical(dict(value.state_dict())) + source_of(type(value))
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}:{value.__qualname__}".encode() + source_of(value)
    if isinstance(own := getattr(value, "fingerprint", None), str):
        return own.encode()
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _canonical(fields, (*outer, id(value)))
    try:
        reduced = value.__reduce_ex__(4)
    except Exception as error:
        raise OracleError(
            f"cannot fingerprint a {type(value).__name__}: {error}; define settings() on the oracle and return "
            "plain values that change when its behaviour does"
        ) from error
    if isinstance(reduced, str):
        return reduced.encode()
    # The parts of an object as pickle would store them, without pickle's dependence on the order of sets.
    make, arguments, *rest = reduced
    state, *items = [*rest, None, None, None][:3]
    parts = [make, arguments, state, *(None if each is None else list(each) for each in items)]
    return _canonical(parts, (*outer, id(value))) + source_of(type(value))
