"""A swept setting: its values or its distribution, with W&B's names.

Every distribution is represented by its quantile function, as in W&B. Random search and Optuna draw a number in
[0, 1], and the quantile function maps it to a value.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from dinado.errors import ConfigError
from workbench.settings.experiment_files import one_line

RANGE, BELL = ("min", "max"), ("mu", "sigma")
FINITE = {"constant": "value", "categorical": "values", "categorical_w_probabilities": "values"}
QUANTILES: dict[str, tuple[tuple[str, str], Callable[[float, float, float], float]]] = {
    "uniform": (RANGE, lambda u, low, high: low + u * (high - low)),
    "log_uniform_values": (RANGE, lambda u, low, high: low * (high / low) ** u),
    "normal": (BELL, lambda u, mu, sigma: mu + sigma * NormalDist().inv_cdf(u)),
    "log_normal": (BELL, lambda u, mu, sigma: math.exp(mu + sigma * NormalDist().inv_cdf(u))),
}
DISTRIBUTIONS = (*FINITE, "int_uniform", *QUANTILES, *(f"q_{name}" for name in QUANTILES))
TAIL = 1e-3
"""Quantile at which the check of the ends cuts off a distribution without bounds."""
DIGITS = 6
"""Significant digits of a draw: precise enough, and short enough to read and to type."""


@dataclass(frozen=True)
class Parameter:
    """A swept setting and its distribution.

    Attributes:
        key: dotted name of the setting.
        distribution: one of :data:`DISTRIBUTIONS`.
        values: the choices of a finite distribution, empty for a range.
        probabilities: probabilities of the choices, empty where they are equal.
        bounds: minimum and maximum, or mean and standard deviation of a normal distribution.
        step: a ``q_`` distribution rounds to multiples of this.
    """

    key: str
    distribution: str
    values: tuple[Any, ...] = ()
    probabilities: tuple[float, ...] = ()
    bounds: tuple[float, float] = (0.0, 0.0)
    step: float = field(default=1)

    def at(self, u: float) -> Any:
        """Return the ``u``-quantile for ``u`` in (0, 1), as W&B computes it."""
        if self.probabilities:
            total = 0.0
            for value, share in zip(self.values, self.probabilities, strict=True):
                total += share
                if u < total:
                    return value
            return self.values[-1]
        if self.values:
            return self.values[max(0, math.ceil(u * len(self.values)) - 1)]
        if self.distribution == "int_uniform":
            low, high = int(self.bounds[0]), int(self.bounds[1])
            return low + max(0, math.ceil(u * (high + 1 - low)) - 1)
        value = QUANTILES[self.distribution.removeprefix("q_")][1](u, *self.bounds)
        if self.distribution.startswith("q_"):
            value = round(value / self.step) * self.step
            if isinstance(self.step, int):
                return int(value)
        return float(f"{value:.{DIGITS}g}")

    def grid(self) -> tuple[Any, ...]:
        """Return all values of a finite parameter; ``int_uniform`` and ``q_uniform`` are finite too.

        The values of ``q_uniform`` exclude its upper end, as in W&B.

        Raises:
            ConfigError: the number of values is infinite.
        """
        if self.values and not self.probabilities:
            return self.values
        low, high = self.bounds
        if self.distribution == "int_uniform":
            return tuple(range(int(low), int(high) + 1))
        if self.distribution == "q_uniform":
            steps = (low + number * self.step for number in range(math.ceil((high - low) / self.step)))
            return tuple(value if isinstance(value, int) else float(f"{value:.{DIGITS}g}") for value in steps)
        raise ConfigError(f"{self.key}: method=grid takes value, values, int_uniform or q_uniform")

    def samples(self) -> tuple[Any, ...]:
        """Return representative values for a check: every choice, or the ends of a range and a value between them."""
        if self.values:
            return self.values
        bounded = self.distribution == "int_uniform" or QUANTILES[self.distribution.removeprefix("q_")][0] == RANGE
        first, last = (0.0, 1.0) if bounded else (TAIL, 1 - TAIL)
        return tuple(dict.fromkeys((self.at(first), self.at(last), self.at(0.382))))


def parameters(body: Any) -> tuple[Parameter, ...]:
    """Read the ``parameters`` of a sweep.

    Raises:
        ConfigError: a parameter is empty, has keys that do not belong to its distribution, or has invalid values.
    """
    if not isinstance(body, Mapping) or not body:
        raise ConfigError("parameters: name at least one setting with its values or its range")
    return tuple(_parameter(str(key), spec) for key, spec in body.items())


def _parameter(key: str, spec: Any) -> Parameter:
    if not isinstance(spec, Mapping) or not spec:
        raise ConfigError(f"{key}: expected value, values, or min and max, got {one_line(spec)}")
    if "parameters" in spec:
        raise ConfigError(f"{key}: nested parameters become one word that train.py cannot read; write {key}.<name>")
    name = _distribution(key, spec)
    for problem in _misfits(name, spec):
        raise ConfigError(f"{key}: {problem}")
    if name in FINITE:
        values = (spec["value"],) if name == "constant" else tuple(spec["values"])
        return Parameter(key, name, values, tuple(spec.get("probabilities", ())))
    first, second = RANGE if name == "int_uniform" else QUANTILES[name.removeprefix("q_")][0]
    default = dict(zip(BELL, (0.0, 1.0), strict=True))
    bounds = (spec.get(first, default.get(first)), spec.get(second, default.get(second)))
    return Parameter(key, name, bounds=bounds, step=spec.get("q", 1))


def _distribution(key: str, spec: Mapping[str, Any]) -> str:
    name = spec.get("distribution")
    if name is None:
        if "value" in spec or "values" in spec:
            kind = "categorical_w_probabilities" if "probabilities" in spec else "categorical"
            return "constant" if "value" in spec else kind
        ends = [spec.get("min"), spec.get("max")]
        whole = [type(end) is int for end in ends]
        if any(whole) and not all(whole) and float in map(type, ends):
            raise ConfigError(f"{key}: min and max are both whole (int_uniform) or both not (uniform); make them alike")
        return "int_uniform" if all(whole) else "uniform"
    if name not in DISTRIBUTIONS:
        close = difflib.get_close_matches(str(name), DISTRIBUTIONS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(DISTRIBUTIONS)}"
        raise ConfigError(f"{key}: distribution={one_line(name)}: {hint}")
    return str(name)


def _misfits(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield the errors of a parameter of this distribution."""
    needed: set[str] = set()
    optional: set[str] = set()
    if name in FINITE:
        needed = {FINITE[name]} | ({"probabilities"} if name == "categorical_w_probabilities" else set())
    elif name == "int_uniform" or QUANTILES[name.removeprefix("q_")][0] == RANGE:
        needed = set(RANGE)
    else:
        optional |= set(BELL)
    if name.startswith("q_"):
        optional.add("q")
    for word in sorted(needed - set(spec)):
        yield f"{word} is missing ({name})"
    for word in [word for word in spec if word not in needed | optional | {"distribution"}]:
        yield f"{word} does not belong to {name}"
    if name in FINITE:
        yield from _bad_choices(spec)
        return
    for word in [word for word in (*RANGE, *BELL, "q") if word in spec]:
        value = spec[word]
        if isinstance(value, str) and _is_number(value):
            yield f"{word}={value} is text to YAML; a number has a point and a signed exponent, such as 1.0e-5"
        if type(value) not in (int, float) or not math.isfinite(value):
            yield f"{word}={one_line(value)}: give a number"
    if name == "int_uniform" and not all(type(spec[word]) is int for word in RANGE):
        yield "int_uniform needs whole numbers"
    if "min" in spec and spec["min"] >= spec["max"]:
        yield f"min={spec['min']} is not below max={spec['max']}"
    if "log_uniform" in name and spec["min"] <= 0:
        yield f"min={spec['min']}: a logarithm needs a number above 0"
    if spec.get("q", 1) <= 0 or spec.get("sigma", 1) <= 0:
        yield "q and sigma are above 0"


def _bad_choices(spec: Mapping[str, Any]) -> Iterator[str]:
    if "value" in spec:
        return
    values, shares = spec["values"], spec.get("probabilities")
    if not isinstance(values, list) or not values:
        yield f"values={one_line(values)}: give a list of one value or more"
    if len(set(map(repr, values))) < len(values):
        yield "values has one twice"
    if shares is None:
        return
    if not isinstance(shares, list) or not all(type(share) in (int, float) and share >= 0 for share in shares):
        yield "probabilities is a list of numbers of 0 or more"
    if len(shares) != len(values) or not math.isclose(sum(shares), 1.0, abs_tol=1e-8):
        yield f"probabilities are one for each of the {len(values)} values, and 1 in all"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
