"""Reading and checking of a sweep file, in the format of W&B, so that ``wandb sweep`` takes the same file."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dinado.errors import ConfigError
from workbench.settings import schema
from workbench.settings.experiment_files import EXPERIMENTS, label_of, one_line, reason
from workbench.sweeping.hyperband import Hyperband
from workbench.sweeping.space import Parameter, parameters

SWEEPS = EXPERIMENTS / "sweeps"
METHODS = ("grid", "random", "bayes")
KEYS = "program command method metric parameters early_terminate run_cap name description"
ONLINE = "project entity apiVersion kind controller"
"""Keys that only W&B reads."""
ARGS = ("${args}", "${args_no_hyphens}")
COMMAND = '["${env}", "${interpreter}", "${program}", "quickstart", "${args}"]'


@dataclass(frozen=True)
class Definition:
    """The content of a sweep file.

    Attributes:
        path: the file.
        label: its name in error messages.
        method: ``grid``, ``random`` or ``bayes``.
        metric: name of the number that ranks the trials.
        maximise: whether more of it is better.
        parameters: the swept settings.
        experiment: the experiment of every trial.
        fixed: settings of the command, the same for every trial.
        run_cap: maximum number of trials, None for no bound.
        hyperband: rule of early stopping, None for none.
        description: one line.
    """

    path: Path
    label: str
    method: str
    metric: str
    maximise: bool
    parameters: tuple[Parameter, ...]
    experiment: str
    fixed: tuple[str, ...]
    run_cap: int | None
    hyperband: Hyperband | None
    description: str

    @property
    def name(self) -> str:
        """Name of the file, reduced to characters that folders and W&B accept."""
        return re.sub(r"[^\w.-]+", "-", self.path.stem)


def shipped() -> dict[str, str]:
    """Return the sweeps that ship with the project and their descriptions."""
    return {path.stem: read(str(path)).description for path in sorted(SWEEPS.glob("*.yaml"))}


def read(name: str) -> Definition:
    """Read a sweep file, by path or, for one that ships with the project, by name.

    Raises:
        ConfigError: there is no such file, or it is not a sweep of ``train.py``; one line that names file and place.
    """
    path = _locate(name)
    label = path.name if path.resolve().parent == SWEEPS else label_of(path)
    try:
        body = _load(path)
        unknown = [key for key in body if key not in f"{KEYS} {ONLINE}".split()]
        if unknown:
            close = difflib.get_close_matches(unknown[0], KEYS.split(), n=1)
            raise ConfigError(f"{unknown[0]}: no such key; {f'did you mean {close[0]}?' if close else KEYS}")
        experiment, fixed = _command(body)
        metric, maximise = _metric(body.get("metric"))
        method = body.get("method")
        if method not in METHODS:
            close = difflib.get_close_matches(str(method), METHODS, n=1)
            raise ConfigError(f"method={one_line(method)}: {f'did you mean {close[0]}?' if close else METHODS}")
        found = parameters(body.get("parameters"))
        for problem in _misfits(found, method, fixed):
            raise ConfigError(problem)
        cap = body.get("run_cap")
        if cap is not None and (type(cap) is not int or cap < 1):
            raise ConfigError(f"run_cap={one_line(cap)}: give a whole number of 1 or more")
        hyperband = Hyperband.read(body["early_terminate"]) if "early_terminate" in body else None
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}") from None
    description = one_line(body.get("description") or "")
    return Definition(
        path, label, method, metric, maximise, found, experiment, fixed, cap, hyperband, description
    )  # fmt: skip


def _locate(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise ConfigError(f"no sweep file {one_line(name)}")
        return Path(name)
    if (path := SWEEPS / f"{name}.yaml").is_file():
        return path
    known = [path.stem for path in sorted(SWEEPS.glob("*.yaml"))]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    raise ConfigError(f"no sweep {one_line(name)!r}; {hint}")


def _load(path: Path) -> dict[str, Any]:
    try:
        body = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(reason(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {one_line(error)}") from None
    if not isinstance(body, dict):
        found = "nothing" if body is None else f"a {type(body).__name__}"
        raise ConfigError(f"expected `key: value` lines, found {found}")
    return body


class _Loader(yaml.SafeLoader):
    """The YAML loader that W&B uses for sweeps, except that a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1 and isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem=f"{key.value} occurs twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _command(body: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the experiment and the fixed settings from the command of the sweep."""
    program, command = body.get("program"), body.get("command")
    if not isinstance(program, str) or Path(program).name != "train.py":
        raise ConfigError(f"program={one_line(program)}: a trial is a run of train.py")
    if not isinstance(command, list) or "${program}" not in command:
        raise ConfigError(f"command: give a list such as {COMMAND}")
    words = [str(word) for word in command]
    before, after = words[: words.index("${program}")], words[words.index("${program}") + 1 :]
    for word in before:
        if word not in ("${env}", "${interpreter}"):
            raise ConfigError(f"command: {word} before ${{program}}: only ${{env}} and ${{interpreter}} belong there")
    if not set(ARGS) & set(after):
        raise ConfigError("command: ${args} is missing, so that no trial would differ from another")
    rest = [word for word in after if word not in ARGS]
    for word in rest:
        if word.startswith("${"):
            raise ConfigError(f"command: {word}: train.py reads ${{args}}")
        if word.startswith("-") and "=" not in word:
            raise ConfigError(f"command: {word}: settings alone, as key=value; options do not belong to a sweep")
    names = [word for word in rest if "=" not in word]
    if len(names) != 1:
        what = "an experiment is missing" if not names else f"{names[1]}: one word too many"
        raise ConfigError(f"command: {what}; give a list such as {COMMAND}")
    return names[0], tuple(word.removeprefix("--") for word in rest if "=" in word)


def _metric(body: Any) -> tuple[str, bool]:
    if not isinstance(body, Mapping) or not isinstance(body.get("name"), str):
        raise ConfigError("metric: say what trials are ranked by, such as {name: val/success, goal: maximize}")
    if unknown := sorted(set(body) - {"name", "goal"}):
        raise ConfigError(f"metric: {unknown[0]}: only name and goal are read here")
    goal = body.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise ConfigError(f"metric: goal={one_line(goal)}: minimize or maximize")
    return body["name"], goal == "maximize"


def _misfits(found: tuple[Parameter, ...], method: str, fixed: tuple[str, ...]) -> Iterator[str]:
    """Yield errors: names that are no settings, and parameters that the method cannot sweep."""
    known = schema.leaves()
    keys = [parameter.key.replace("-", "_") for parameter in found]
    for key in keys:
        if key in schema.sections():
            yield f"{key} is a section; sweep its keys, such as {next(k for k in known if k.startswith(f'{key}.'))}"
        if key not in known:
            yield f"{key}: no such key{schema.nearest(key)}"
        if key == "runs":
            yield "runs: a sweep keeps all of its runs in one place; leave it out"
        if keys.count(key) > 1:
            yield f"{key} is swept twice"
    for word in fixed:
        if (key := word.partition("=")[0].replace("-", "_")) in keys:
            yield f"command: {word}: {key} is swept, so its value comes from parameters"
    if method == "grid":
        math.prod(len(parameter.grid()) for parameter in found)
