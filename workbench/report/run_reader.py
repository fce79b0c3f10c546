"""Run folders on disk: finding them from the words of the command line, and reading settings, metrics and samples."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from dinado.errors import CheckpointError, DataError
from workbench.run_status import status
from workbench.settings import schema

# Scalars stay text, so that `off` is a word and 0.001 keeps its spelling. The parser in C is ten times faster.
_TEXT = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


PARTS = ("log_ratio", "gap", "known")
"""What ``samples/held_out.jsonl`` says of a prompt's KL(q*||q): D, G and whether an accepted rollout is known."""


@dataclass(frozen=True)
class Place:
    """A run folder, and whether the user named it or it was found inside a folder that the user named."""

    path: Path
    named: bool


@dataclass
class Run:
    """The content of one run folder.

    Attributes:
        path: the folder.
        settings: every key of the schema with its value as text.
        records: the lines of ``metrics.jsonl``.
        status: as :func:`~workbench.run_status.status` returns it.
        code: commit of the code, with a plus if files had uncommitted changes; empty when unknown.
        samples: ``samples/after.jsonl`` and ``samples/before.jsonl``, under ``after`` and ``before``.
        held_out: ``samples/held_out.jsonl``: parts of KL(q*||q) of each held-out prompt; empty in older runs.
    """

    path: Path
    settings: dict[str, str]
    records: list[dict[str, Any]]
    status: str = "finished"
    code: str = ""
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    held_out: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seed(self) -> str:
        """The seed, with that of the rollouts where it is not the default."""
        seed, rollouts = self.settings["seed"], self.settings["rollouts.seed"]
        return seed if rollouts == str(schema.leaves()["rollouts.seed"].default) else f"{seed}, rollouts {rollouts}"

    @property
    def finished(self) -> bool:
        """Whether the run has finished, so that its last numbers are its result."""
        return self.status == "finished"

    @cached_property
    def final(self) -> dict[str, float]:
        """The last recorded value of every number."""
        found: dict[str, float] = {}
        for record in self.records:
            found |= {key: float(value) for key, value in record.items() if is_number(value)}
        return found

    @cached_property
    def base_counts(self) -> list[tuple[int, int]]:
        """Accepted and all held-out rollouts of the base, for each prompt."""
        scores: dict[str, list[float]] = {}
        for record in self.samples.get("before", ()):
            scores.setdefault(record["prompt"], []).append(float(record["score"]))
        return [(round(sum(values)), len(values)) for values in scores.values()]

    @cached_property
    def per_prompt(self) -> dict[str, float]:
        """Mean score of the controlled samples of each held-out prompt."""
        scores: dict[str, list[float]] = {}
        for record in self.samples.get("after", ()):
            scores.setdefault(record["prompt"], []).append(float(record["score"]))
        return {prompt: sum(values) / len(values) for prompt, values in scores.items()}


def find_runs(words: Sequence[str], *, empty: bool = False) -> list[Place]:
    """Find run folders by folders, files inside runs, glob patterns, or the folder of a sweep.

    A folder stands for all runs at any depth in it and for those that a ``trials`` file in it names.

    Args:
        empty: whether a folder or a pattern may match no run (yet).

    Raises:
        CheckpointError: a word matches no run.
    """
    found: dict[Path, Place] = {}
    for word in words:
        matches = [Path(word)] if Path(word).exists() else [Path(match) for match in sorted(glob.glob(word))]
        places = [place for match in matches for place in _below(match, named=len(matches) == 1)]
        waiting = empty and (Path(word).is_dir() or glob.has_magic(word))
        if not places and not waiting:
            what = "no run in" if matches else "no run at"
            raise CheckpointError(f"{what} {word}; a run is a folder like runs/<experiment>/<id>")
        for place in places:
            found.setdefault(place.path.resolve(), place)
    return list(found.values())


def read_run(path: Path, *, live: bool = False) -> Run:
    """Read a run folder.

    Args:
        live: the run may still be writing, so incomplete lines are skipped.

    Raises:
        CheckpointError: its settings cannot be read.
        DataError: a line of ``metrics.jsonl`` or of the samples is damaged.
    """
    try:
        body = yaml.load((path / "config.yaml").read_text(encoding="utf-8"), Loader=_TEXT)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path / 'config.yaml'} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(body, dict):
        raise CheckpointError(f"{path / 'config.yaml'} holds no settings")
    settings = default_settings() | dict(_flat(body))
    samples = {}
    for name in ("before", "after"):
        rows = _lines(path / "samples" / f"{name}.jsonl", live)
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get("prompt"), str) or not is_number(row.get("score")):
                raise DataError(f"{path / 'samples' / name}.jsonl: line {number} has no prompt or no score")
        samples[name] = rows
    held_out = _lines(path / "samples" / "held_out.jsonl", live)
    for number, row in enumerate(held_out, 1):
        if not isinstance(row.get("prompt"), str) or not all(map(is_number, map(row.get, PARTS))):
            raise DataError(f"{path / 'samples' / 'held_out.jsonl'}: line {number} has no prompt, {', '.join(PARTS)}")
    records = _lines(path / "metrics.jsonl", live)
    for number, record in enumerate(records, 1):
        if not is_number(record.get("step")):
            raise DataError(f"{path / 'metrics.jsonl'}: line {number} has no step")
    return Run(path, settings, records, status(path), _code(path), samples, held_out)


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _below(path: Path, *, named: bool) -> Iterator[Place]:
    for folder in (path, *path.parents[:2]) if path.is_file() else (path,):
        if _is_run(folder):
            yield Place(folder, named)
            return
    for root, folders, files in os.walk(path):
        folders.sort()
        inside = [name for name in folders if _is_run(Path(root) / name)]
        for name in inside:
            yield Place(Path(root) / name, False)
        # Do not descend into runs: their loggers write files that look like runs.
        folders[:] = [name for name in folders if name not in inside]
        for name in sorted(files):
            if name.startswith("trials") and name.endswith((".json", ".jsonl")):
                yield from (Place(run, False) for run in _named_in(Path(root) / name))


def _named_in(file: Path) -> Iterator[Path]:
    """Yield every run folder that a file of trials mentions, under any key."""
    text = file.read_text(encoding="utf-8", errors="replace")
    for part in (text, *text.splitlines()):
        try:
            body = json.loads(part)
        except json.JSONDecodeError:
            continue
        for word in _strings(body):
            for folder in (Path(word), file.parent / word) if 0 < len(word) < 1000 and "\n" not in word else ():
                if _is_run(folder):
                    yield folder
                    break
        if part is text:
            return


def _strings(body: Any) -> Iterator[str]:
    if isinstance(body, str):
        yield body
    elif isinstance(body, dict | list):
        for item in body.values() if isinstance(body, dict) else body:
            yield from _strings(item)


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and any(
        (folder / name).is_file() for name in ("STATUS", "env.json", "metrics.jsonl")
    )


def _lines(file: Path, live: bool) -> list[dict[str, Any]]:
    rows = []
    try:
        lines: Iterable[str] = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif not live:
            raise DataError(f"{file}: line {number} is damaged: {line[:40]!r}; leave the run out, or run it again")
    return rows


def _flat(body: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in body.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in schema.leaves():
            yield from _flat(value, f"{key}.")
        else:
            yield schema.renamed().get(key, key), _text(value)


def _text(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


@cache
def default_settings() -> dict[str, str]:
    """Return the default of every setting as run folders store it, for runs that predate a setting."""
    return {
        key: _text(yaml.load(yaml.safe_dump(_listed(leaf.default)), Loader=_TEXT))
        for key, leaf in schema.leaves().items()
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _code(path: Path) -> str:
    try:
        git = json.loads((path / "env.json").read_text(encoding="utf-8")).get("git") or {}
    except (OSError, ValueError, AttributeError):
        return ""
    return f"{str(git.get('commit', ''))[:7]}{'+' if git.get('dirty') else ''}" if isinstance(git, dict) else ""
