"""The folder of a run: ``runs/<experiment>/<run_id>/`` with its settings, environment, metrics and status.

``STATUS`` is reliable even for a run that was killed: it holds the writer's host, process and start time, and a reader
that finds this process gone reports ``killed``. Only rank 0 writes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from dinado.errors import CheckpointError, ConfigError, Stopped, UserError
from dinado.ranks import is_writer
from workbench.environment import environment
from workbench.plain_files import json_line, write_text
from workbench.run_ids import choose_run_id, job_name
from workbench.run_status import identity, is_requeued, owner_of, status
from workbench.settings import schema
from workbench.settings.loaded import Loaded
from workbench.settings.loader import from_run_folder, to_yaml
from workbench.settings.places import started_in


class RunFolder:
    """The folder of a run; as a context manager it writes ``STATUS`` at the start and at the end.

    Attributes:
        path: ``runs/<experiment>/<run_id>``.
        run_id: name of the folder, also the id on W&B.
        checkpoint: checkpoint for resuming: the last one, unless another was named.
        best: checkpoint of the weights nearest to q*, which only a finished run with ``trainer.keep_best`` has.
    """

    def __init__(self, path: str | Path, checkpoint: Path | None = None) -> None:
        self.path = Path(path)
        self.run_id = self.path.name
        self.checkpoint = checkpoint or self.path / "checkpoints" / "last.ckpt"
        self.best = self.path / "checkpoints" / "best" / "best.ckpt"
        self._named = checkpoint is not None
        self._before = ""  # STATUS before this start
        self._changed = False  # whether this start has changed records or settings

    @property
    def trained(self) -> Path:
        """The checkpoint with the weights that the run ended with: the best, if it kept one and none was named."""
        return self.best if self.best.is_file() and not self._named else self.checkpoint

    @classmethod
    def create(cls, loaded: Loaded, overrides: Sequence[str] = ()) -> RunFolder:
        """Create the folder of a new run with its overrides, environment and settings.

        Raises:
            CheckpointError: the run exists already.
            ConfigError: the folder cannot be created.
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
            write_text(folder.path / "overrides.txt", "".join(f"{line}\n" for line in overrides))
            write_text(folder.path / "env.json", json.dumps(environment(), indent=2) + "\n")
            write_text(folder.path / "config.yaml", to_yaml(loaded))
        return folder

    @classmethod
    def of_job(cls, loaded: Loaded, overrides: Sequence[str] = ()) -> RunFolder:
        """Return the run of this job: a new one, or that of an earlier start of the same job and command.

        All machines derive the same folder from the name of the job, without communication.

        Raises:
            ConfigError: the job has no name, or its run was started with other settings.
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

    def make_importable(self) -> None:
        """Let modules be imported from the folder in which the run was started, such as a user's own oracle."""
        folder = started_in(self.path)
        if folder is not None and str(folder) not in sys.path:
            sys.path.append(str(folder))

    def started(self) -> datetime:
        """Return the moment at which the run was created; for a run of an earlier version, when its settings were."""
        try:
            return datetime.fromisoformat(json.loads((self.path / "env.json").read_text(encoding="utf-8"))["started"])
        except (OSError, ValueError, KeyError, TypeError):
            file = self.path / "config.yaml"
            return datetime.fromtimestamp(file.stat().st_mtime) if file.is_file() else datetime.now()

    def change(self, loaded: Loaded, overrides: Sequence[str]) -> None:
        """Record the changed settings of a resumed run."""
        self._changed = True
        if is_writer() and overrides:
            with (self.path / "overrides.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(f"{line}\n" for line in overrides))
            write_text(self.path / "config.yaml", to_yaml(loaded))

    def __enter__(self) -> RunFolder:
        owner, us = owner_of(self.path), identity()
        if is_writer() and status(self.path) == "running" and owner != us and not is_requeued(owner, us):
            where = "" if owner.get("host") == us["host"] else f" on {owner.get('host')}"
            hint = f"; if that machine is gone, delete {self.path / 'STATUS'}" if where else ""
            raise CheckpointError(f"run {self.path} is still running, process {owner.get('pid')}{where}{hint}")
        self._before, self._changed = self._kept_status(), False
        self.mark("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if status(self.path) != "running":  # the run has recorded its end itself
            return
        # A full disk has been reported already. If STATUS stays at running, readers notice that the process is gone.
        with suppress(OSError) if error is not None else nullcontext():
            if error is not None and self._is_as_before(error):
                write_text(self.path / "STATUS", self._before)
            else:
                self._mark_end(error)

    def _kept_status(self) -> str:
        """Return the content of STATUS that stays if this start is refused; empty for a new or a failed run."""
        if not is_writer() or status(self.path).startswith(("unknown", "failed")):
            return ""
        return (self.path / "STATUS").read_text(encoding="utf-8", errors="replace")

    def _is_as_before(self, error: BaseException) -> bool:
        """Tell whether a resumed run was refused, or a finished one not even begun, so that its earlier end stands."""
        if not self._before or self._changed:
            return False
        return isinstance(error, UserError) or self._before.startswith("finished")

    def _mark_end(self, error: BaseException | None) -> None:
        code = error.code if isinstance(error, SystemExit) else None
        if error is None:
            self.mark("finished")
        elif isinstance(error, KeyboardInterrupt) or code in (Stopped.exit_code, 130):
            self.mark("interrupted", "" if code else str(error))
        else:
            self.mark("failed", f"{type(error).__name__}: {error}")

    def mark(self, state: str, reason: str = "") -> None:
        """Write ``STATUS``: a line with the state and the reason, then the identity of the writer."""
        if is_writer():
            line = " ".join(f"{state}: {reason}".split()) if reason else state
            write_text(self.path / "STATUS", f"{line}\n{json.dumps(identity())}\n")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``; NaN and infinities become null."""
        if is_writer():
            with (self.path / "metrics.jsonl").open("ab+") as file:
                if file.tell() and not _ends_in_newline(file):
                    file.write(b"\n")  # a line that a kill truncated stays separate from the next one
                file.write(json_line(record).encode() + b"\n")

    def truncate_metrics(self, step: int) -> None:
        """Drop the records of optimiser step ``step`` and later, which a run resumed from there writes again."""
        self._changed = True
        if is_writer():
            kept = [record for record in self.metrics() if record.get("step", 0) < step]
            write_text(self.path / "metrics.jsonl", "".join(f"{json_line(record)}\n" for record in kept))

    def has_held_out_numbers(self, step: int) -> bool:
        """Tell whether ``metrics.jsonl`` has a validation of this step."""
        return any(record.get("step") == step and "val/kl_to_optimum" in record for record in self.metrics())

    def metrics(self) -> list[dict[str, Any]]:
        """Read the records of ``metrics.jsonl``, without lines that a kill truncated."""
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


def find_run(path: str | Path) -> RunFolder:
    """Return the run at ``path``, which may also be a file inside its folder, such as a checkpoint.

    Raises:
        CheckpointError: there is no run; the message names the latest one nearby.
    """
    path = Path(path)
    for folder in (path, *path.parents[:2]):
        if path.exists() and (folder / "config.yaml").is_file():
            # The name of the folder is the run's id: that of a link to it, or ".", is none.
            real = folder.resolve()
            found = folder if folder.name == real.name and not folder.is_symlink() else real
            return RunFolder(found, path if path.suffix == ".ckpt" else None)
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


def _ends_in_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
