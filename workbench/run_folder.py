"""One folder a run: ``runs/<experiment>/<run_id>/`` with its settings, environment, numbers and status.

``STATUS`` tells the truth even about a run that was killed: it holds the writer's host, process and start time,
and a reader that finds this process gone says ``killed``. Only the first process writes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from dinado.errors import CheckpointError, ConfigError, Stopped
from dinado.ranks import is_writer
from workbench.settings import schema
from workbench.settings.loaded import Loaded
from workbench.settings.loader import from_run_folder, to_yaml

RUN_ID = "DINADO_RUN_ID"
PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "peft",
    "torchmetrics",
    "datasets",
    "omegaconf",
    "numpy",
    "scipy",
    "wandb",
    "tensorboard",
)


def choose_run_id(words: Sequence[str] = ()) -> str:
    """The id of this run, the same in all of its processes; exported so that launched processes inherit it.

    In this order: what the launching process exported, ``WANDB_RUN_ID``, the scheduler's job with a hash of
    ``words`` (so that a requeued job finds its folder and two commands in a job do not share one), the time.

    Args:
        words: what tells this run from others of the same job, such as the experiment and its overrides.
    """
    job = job_name()
    if not is_writer() and os.environ.get(RUN_ID):
        chosen = os.environ[RUN_ID]
    elif os.environ.get("WANDB_RUN_ID"):
        chosen = os.environ["WANDB_RUN_ID"]
    elif job:
        chosen = f"{job}-{hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()[:4]}"
    else:
        chosen = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    os.environ[RUN_ID] = chosen
    return chosen


def job_name() -> str:
    """What SLURM or torchrun calls this job, the same on all machines and after a restart; empty without one."""
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"slurm{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    if os.environ.get("SLURM_JOB_ID"):
        return f"slurm{os.environ['SLURM_JOB_ID']}"
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if not name:
        return ""
    if name == "none":  # torchrun without --rdzv-id: its own process tells one launch from the next
        name = f"{os.getppid()} {_started(os.getppid())}"
    return f"elastic{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class RunFolder:
    """The folder of a run; as a context manager it keeps ``STATUS`` true.

    Attributes:
        path: ``runs/<experiment>/<run_id>``.
        run_id: name of the folder, also the id on W&B.
        checkpoint: what a run goes on from and is evaluated by: the last one, unless another was named.
    """

    def __init__(self, path: str | Path, checkpoint: Path | None = None) -> None:
        self.path = Path(path)
        self.run_id = self.path.name
        self.checkpoint = checkpoint or self.path / "checkpoints" / "last.ckpt"

    @classmethod
    def create(cls, loaded: Loaded, overrides: Sequence[str] = ()) -> RunFolder:
        """Make the folder of a new run and write what decides its outcome.

        Raises:
            CheckpointError: if the run exists already.
        """
        run_id = choose_run_id((loaded.experiment, *overrides))
        folder = cls(Path(loaded.config.runs) / loaded.experiment / run_id)
        if is_writer():
            if (folder.path / "config.yaml").exists():
                raise CheckpointError(
                    f"run {folder.path} exists ({status(folder.path)}); continue it with --resume {folder.path}"
                )
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"runs={loaded.config.runs}: {error.strerror}; name a folder to write to") from None
            _write(folder.path / "overrides.txt", "".join(f"{line}\n" for line in overrides))
            _write(folder.path / "env.json", json.dumps(environment(), indent=2) + "\n")
            _write(folder.path / "config.yaml", to_yaml(loaded))
        return folder

    @classmethod
    def of_job(cls, loaded: Loaded, overrides: Sequence[str] = ()) -> RunFolder:
        """The run of this job: new, or what an earlier start of the same job with the same command has left.

        Processes on other machines come to the same folder without asking, because the job names it.

        Raises:
            ConfigError: nothing names the job, or its run was started with other settings.
        """
        if not (os.environ.get("WANDB_RUN_ID") or job_name()):
            raise ConfigError(
                "--continue finds a run by its job and there is none: start it with SLURM or torchrun --rdzv-id NAME, "
                "set WANDB_RUN_ID=NAME, or go on with --resume RUN"
            )
        run_id = choose_run_id((loaded.experiment, *overrides))
        folder = cls(Path(loaded.config.runs) / loaded.experiment / run_id)
        if not (folder.path / "config.yaml").exists():
            return cls.create(loaded, overrides)
        if is_writer():
            folder._check_settings(loaded)
        return folder

    def _check_settings(self, loaded: Loaded) -> None:
        config = from_run_folder(self.path).config
        for key in schema.leaves():
            before, now = schema.get(config, key), schema.get(loaded.config, key)
            if before != now:
                raise ConfigError(
                    f"{loaded.provenance[key]}: {key}={now}: run {self.path} was started with {before}; set it back, "
                    f"or change it on purpose with --resume {self.path} {key}={now}"
                )

    def change(self, loaded: Loaded, overrides: Sequence[str]) -> None:
        """Keep the record true when a run goes on with other settings."""
        if is_writer() and overrides:
            with (self.path / "overrides.txt").open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in overrides))
            _write(self.path / "config.yaml", to_yaml(loaded))

    def __enter__(self) -> RunFolder:
        owner, us = _owner(self.path), _identity()
        if is_writer() and status(self.path) == "running" and owner != us and not _is_requeued(owner, us):
            where = "" if owner.get("host") == us["host"] else f" on {owner.get('host')}"
            hint = f"; if that machine is gone, delete {self.path / 'STATUS'}" if where else ""
            raise CheckpointError(f"run {self.path} is still running, process {owner.get('pid')}{where}{hint}")
        self.mark("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if status(self.path) != "running":  # the run has said itself how it ended
            return
        # A disk that is full has been reported already; readers of a STATUS that stays at running see the dead process.
        with suppress(OSError) if error is not None else nullcontext():
            self._mark_end(error)

    def _mark_end(self, error: BaseException | None) -> None:
        code = error.code if isinstance(error, SystemExit) else None
        if error is None or (isinstance(error, SystemExit) and code in (None, 0)):
            self.mark("finished")
        elif isinstance(error, KeyboardInterrupt) or code in (Stopped.exit_code, 130):
            self.mark("interrupted", "" if code else str(error))
        else:
            self.mark("failed", f"{type(error).__name__}: {error}")

    def mark(self, state: str, reason: str = "") -> None:
        """Write ``STATUS``: a line with the state and the reason, then who wrote it."""
        if is_writer():
            line = " ".join(f"{state}: {reason}".split()) if reason else state
            _write(self.path / "STATUS", f"{line}\n{json.dumps(_identity())}\n")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``; NaN and infinities become null."""
        if is_writer():
            with (self.path / "metrics.jsonl").open("ab+") as file:
                if file.tell() and not _ends_in_newline(file):
                    file.write(b"\n")  # a line cut short by a kill stays alone
                file.write(json_line(record).encode() + b"\n")

    def truncate_metrics(self, step: int) -> None:
        """Drop records of optimiser steps from ``step`` on: a run that is resumed from there writes them again."""
        if is_writer():
            kept = [record for record in self.metrics() if record.get("step", 0) < step]
            _write(self.path / "metrics.jsonl", "".join(f"{json_line(record)}\n" for record in kept))

    def has_held_out_numbers(self, step: int) -> bool:
        """Whether a validation of this step is on record."""
        return any(record.get("step") == step and "val/kl_to_optimum" in record for record in self.metrics())

    def metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``, without lines that a kill cut short."""
        file = self.path / "metrics.jsonl"
        records = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict):
                records.append(record)
        return records


def status(path: str | Path) -> str:
    """``running``, ``finished``, ``interrupted``, ``failed: <reason>``, ``killed``, or ``unknown`` without STATUS.

    A run is ``killed`` if it says running, but its process on this host is gone.
    """
    try:
        line = (Path(path) / "STATUS").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except FileNotFoundError:
        return "unknown"
    owner = _owner(Path(path))
    here = owner.get("host") == socket.gethostname()
    pid = owner.get("pid")
    if line == "running" and here and _started(pid if isinstance(pid, int) else 0) != owner.get("started"):
        return "killed"
    return line


def find_run(path: str | Path) -> RunFolder:
    """The run at ``path``, which may also be a file inside its folder, such as a checkpoint.

    Raises:
        CheckpointError: if there is none, with the nearest or latest run there is.
    """
    path = Path(path)
    for folder in (path, *path.parents[:2]):
        if path.exists() and (folder / "config.yaml").is_file():
            return RunFolder(folder, path if path.suffix == ".ckpt" else None)
    if path.is_dir():
        # W&B keeps copies of a run's settings inside its folder.
        files = [file for file in path.rglob("config.yaml") if "wandb" not in file.relative_to(path).parts]
        inside = sorted(files, key=lambda file: file.stat().st_mtime)
        raise CheckpointError(
            f"{path} is not a run; " + (f"the latest in it is {inside[-1].parent}" if inside else "nor holds any")
        )
    parent = next(folder for folder in path.parents if folder.is_dir())
    others = sorted(file.parent for file in parent.glob("*/config.yaml")) or sorted(
        file.parent for file in parent.glob("*/*/config.yaml")
    )
    hint = f"; the latest is {max(others, key=lambda run: (run / 'config.yaml').stat().st_mtime)}" if others else ""
    raise CheckpointError(f"no run at {path}{hint}")


def environment() -> dict[str, Any]:
    """Versions, machine and commit, for ``env.json``."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu_count": os.cpu_count(),
        "versions": versions,
        "git": _git(),
    }


def json_line(record: Mapping[str, Any]) -> str:
    """One line of strict JSON: NaN and infinities become null, tensors and arrays of one number that number."""
    return json.dumps(_plain(record), allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # a tensor or an array, without importing what made it
        return _plain(value.tolist())
    return str(value)


def _write(file: Path, text: str) -> None:
    """Replace a file in one step, so that a reader finds the old content or the new."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _identity() -> dict[str, Any]:
    pid = os.getpid()
    job = {"job": os.environ.get("SLURM_JOB_ID"), "restart": os.environ.get("SLURM_RESTART_COUNT", "0")}
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid), **(job if job["job"] else {})}


def _is_requeued(owner: Mapping[str, Any], us: Mapping[str, Any]) -> bool:
    """Whether the owner belongs to an earlier start of our job, all of which SLURM ends before it starts the next."""
    return "job" in us and owner.get("job") == us["job"] and owner.get("restart") != us["restart"]


def _owner(path: Path) -> dict[str, Any]:
    """Who wrote ``STATUS``; empty when it does not say."""
    try:
        owner = json.loads((path / "STATUS").read_text(encoding="utf-8", errors="replace").partition("\n")[2])
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _started(pid: int) -> str | None:
    """When a process of this host started, in words that only that process has; None if it is not running."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{fields[19]} {boot}"
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _ends_in_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _git() -> dict[str, Any] | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
