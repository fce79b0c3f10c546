"""Loading of an experiment's name and overrides into a checked ``Config``.

Layers, each over the one before: defaults of the schema, the files that ``extends`` names (left to right, each once),
the experiment's own file, the command line. Settings under ``methods: <method>:`` in a file follow its other settings
when that method is trained. A layer may bring a preset along (presets.py). Scalars are read as text and converted by
the type of their field, so ``off`` is a word where the field is one, ``007`` stays a name and ``1e3`` is a whole
number.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dinado.errors import ConfigError
from workbench.settings import rules, schema
from workbench.settings.config import Config
from workbench.settings.experiment_files import (
    EXPERIMENTS,
    TextLoader,
    flatten,
    label_of,
    lineage,
    locate,
    one_line,
    read,
    reason,
)
from workbench.settings.loaded import Loaded
from workbench.settings.places import resolve_places
from workbench.settings.presets import Layer, with_presets

DEFAULT, COMMAND_LINE, FAST_DEV_RUN = "default", "command line", "--fast-dev-run"

SMALL = {
    "data.train_prompts": 4,
    "data.val_prompts": 2,
    "rollouts.per_prompt": 8,
    "rollouts.rounds": 2,
    "targets.positives_share": 0.0,  # of a handful of rollouts none may be accepted
    "optim.steps": 2,
    "optim.norm_steps": 2,
    "trainer.val_every": 1,
    "trainer.log_every": 1,
    "trainer.checkpoint_every": 1,
    "eval.samples_per_prompt": 2,
    "eval.rollouts_per_prompt": 4,
    "eval.max_rollouts": 4,
    "eval.best_of": 2,
    "eval.show": 1,
    "eval.exact_samples": 50,
}


def load(experiment: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read an experiment, by name or as the path of a YAML file, and apply ``key=value`` overrides.

    Raises:
        ConfigError: a file or a setting is invalid; one line that names the key, its source and the nearest known key.
    """
    files = [(label_of(path), body) for path, body in lineage(locate(experiment)).items()]
    return _assemble(files, overrides, Path(experiment).stem)


def from_run_folder(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read the resolved ``config.yaml`` of a run folder ``runs/<experiment>/<run_id>``, old names included.

    Relative paths in it belong to the folder in which the run was started.
    """
    file = Path(path) / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{path} is not a run folder: it has no config.yaml")
    loaded = _assemble([(str(file), _with_new_names(read(file)))], overrides, file.resolve().parent.parent.name)
    resolve_places(loaded, file.parent)
    return loaded


def shrink(loaded: Loaded) -> None:
    """Make an experiment very small in place, so that every stage runs once in little time (``--fast-dev-run``)."""
    config = loaded.config
    processes = config.trainer.devices * config.trainer.num_nodes
    small = {**SMALL, "optim.batch_size": 2 * processes, "optim.rows_per_prompt": 2}
    config.optim.batch_tokens = config.optim.micro_tokens = None
    if config.optim.micro_batch is not None:
        small["optim.micro_batch"] = 1
    for key, value in small.items():
        # 0 means all prompts, only the last validation, or no best-of-n row; only the first of these is large.
        if schema.get(config, key) > value or (key.startswith("data.") and schema.get(config, key) == 0):
            schema.put(config, key, value)
            loaded.provenance[key] = FAST_DEV_RUN


def experiments() -> dict[str, str]:
    """Return the experiments that ship with the project and their descriptions, or the error of the file."""
    found = {}
    for path in sorted(EXPERIMENTS.glob("*.yaml")):
        try:
            found[path.stem] = str(read(path).get("description") or "")
        except ConfigError as error:
            found[path.stem] = f"unreadable: {error}"
    return found


def render(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the configuration as lines of YAML, each with the key it sets (empty for the heading of a section)."""
    before: list[str] = []
    for key in schema.leaves():
        *sections, name = key.split(".")
        shared = next((n for n, (a, b) in enumerate(zip(sections, before, strict=False)) if a != b), len(sections))
        for depth in range(min(shared, len(before)), len(sections)):
            yield f"{'  ' * depth}{sections[depth]}:", ""
        before = sections
        text = yaml.safe_dump(schema.get(config, key), default_flow_style=True, width=10**9, allow_unicode=True)
        yield f"{'  ' * len(sections)}{name}: {text.removesuffix('...' + chr(10)).strip()}", key


def to_yaml(loaded: Loaded, dim: bool = False) -> str:
    """Return the configuration as YAML that :func:`load` reads, the source of every value in a (dimmed) comment."""
    before, after = ("\x1b[2m", "\x1b[0m") if dim else ("", "")
    lines = []
    for line, key in render(loaded.config):
        lines.append(f"{line:<44}  {before}# {loaded.provenance[key]}{after}\n" if key else f"{line}\n")
    return "".join(lines)


def _assemble(files: list[tuple[str, dict[str, Any]]], overrides: Sequence[str], experiment: str) -> Loaded:
    from omegaconf import OmegaConf  # a third of the start-up time, and `--help` does not need it

    tree = OmegaConf.structured(Config)
    provenance = dict.fromkeys(schema.leaves(), DEFAULT)
    typed = _parse_overrides(overrides)
    method, by_method = _by_method(files, typed)
    layers = with_presets([*by_method, (COMMAND_LINE, typed)], method)
    for label, values in layers:
        for key, value in values:
            _assign(tree, key, value, label)
            provenance[key] = label
    if missing := OmegaConf.missing_keys(tree):
        raise ConfigError(f"no value for {', '.join(sorted(missing))}")
    config: Any = OmegaConf.to_object(tree)
    loaded = Loaded(config, provenance, experiment, (DEFAULT, *(label for label, _ in layers)))
    rules.check(loaded)
    return loaded


def _with_new_names(body: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run of an earlier version under their present keys."""
    named: dict[str, Any] = {}
    for key, value in flatten(body):
        *sections, name = schema.renamed().get(key, key).split(".")
        inner = named
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return named


def _by_method(files: list[tuple[str, dict[str, Any]]], typed: list[tuple[str, Any]]) -> tuple[str, list[Layer]]:
    """Return the method, and a layer for the plain settings of each file and one for those of that method in it."""
    blocks = [(label, body.pop("methods", None) or {}) for label, body in files]
    plain = [(label, flatten(body)) for label, body in files]
    method = dict(
        [("method", schema.leaves()["method"].default), *(pair for _, values in plain for pair in values), *typed]
    )["method"]
    layers: list[Layer] = []
    known = schema.leaves()["method"].choices
    for (label, values), (_, block) in zip(plain, blocks, strict=True):
        layers.append((label, values))
        if not isinstance(block, dict):
            raise ConfigError(f"{label}: methods: expected settings under the name of a method")
        for name, settings in block.items():
            where = f"{label}, methods: {name}"
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise ConfigError(f"{where}: no such method; {f'did you mean {close[0]}?' if close else known}")
            if not isinstance(settings, dict):
                raise ConfigError(f"{where}: expected `key: value` lines")
            for key, _ in (found := flatten(settings)):
                if (new := schema.renamed().get(key)) is not None:
                    raise ConfigError(f"{where}: {key}: this setting is now called {new}")
                if key == "method" or key not in schema.leaves():
                    raise ConfigError(f"{where}: {key}: no such key here{schema.nearest(key)}")
            if name == method:
                layers.append((where, found))
    return method, layers


def _assign(tree: Any, key: str, value: Any, where: str) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException, ValidationError

    shown = f"{where}: {key}={'null' if value is None else one_line(value)}"
    if (new := schema.renamed().get(key)) is not None:
        raise ConfigError(f"{shown}: this setting is now called {new}")
    if key in schema.sections():
        example = next(leaf for leaf in schema.leaves() if leaf.startswith(f"{key}."))
        raise ConfigError(f"{shown}: {key} is a section; set its keys, such as {example}")
    leaf = schema.leaves().get(key)
    if leaf is None:
        raise ConfigError(f"{shown}: no such key{schema.nearest(key)}")
    try:
        if leaf.about.choices and value not in leaf.about.choices:
            raise ValidationError
        OmegaConf.update(tree, key, _prepare(value, leaf), merge=False)
    except OmegaConfBaseException:
        close = difflib.get_close_matches(str(value), leaf.choices, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{shown}: expected {leaf.type_name}{hint}") from None


def _prepare(value: Any, leaf: schema.Leaf) -> Any:
    """Convert text for OmegaConf: whole numbers without exponent, and no interpolation inside strings."""
    if isinstance(value, list):
        return [_prepare(item, leaf) for item in value]
    if not isinstance(value, str):
        return value
    if re.search(r"\bint\b", leaf.type_name) and re.fullmatch(r"[+-]?[\d_.]+([eE][+-]?\d+)?", value):
        try:
            return str(int(float(value))) if float(value).is_integer() and not value.isdigit() else value
        except ValueError:
            return value
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)


def _parse_overrides(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    parsed = []
    for text in overrides:
        name, equals, value = text.removeprefix("--").partition("=")
        key = name.replace("-", "_")
        if key == "_wandb":  # W&B agents pass this stray key when they re-queue a run
            continue
        parsed.append((key, _parse_value(key, value if equals else "true")))
    return parsed


def _parse_value(key: str, text: str) -> Any:
    leaf = schema.leaves().get(key)
    type_name = leaf.type_name if leaf else ""
    is_list = "list[" in type_name or "tuple[" in type_name
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if quoted or (is_list and text.startswith("[")):
        try:
            return yaml.load(text, Loader=TextLoader)
        except yaml.YAMLError as error:
            if is_list:
                raise ConfigError(f"{COMMAND_LINE}: {key}={one_line(text)}: {reason(error)}") from None
    return None if text in ("None", "null") else text
