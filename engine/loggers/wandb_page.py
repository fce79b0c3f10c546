"""A run's page on Weights & Biases: Lightning's logger, extended to log every record once and to survive a kill."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from dinado.errors import ConfigError
from dinado.evaluation.judged_samples import JudgedSamples
from engine.checkpoints import LAST
from engine.loggers.code_version import code_settings
from engine.loggers.local_files import numbers_of
from engine.loggers.wandb_ledger import WandbLedger
from engine.loggers.wandb_samples import COLUMNS, rows
from workbench.run_folder import RunFolder
from workbench.run_names import names_of_run
from workbench.settings.conditions import wandb_mode
from workbench.settings.config import Config

PROJECT = "dinado"
STEP = "trainer/global_step"
"""Lightning's name of the x-axis, the optimiser step."""
WRITE_OUT_SECONDS = 0.1
"""Seconds that W&B may keep records in memory; with its default of 15 a kill would lose that much."""


def start(config: Config, folder: RunFolder) -> WandbPage:
    """Open the W&B run, or resume it by the id of the run.

    Raises:
        ConfigError: W&B refuses to start.
    """
    import wandb

    page = WandbPage(config, folder)
    try:
        _ = page.experiment
    except wandb.Error as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"logging.wandb={page.mode}: {reason}; use offline or off, or log in") from None
    return page


class WandbPage(WandbLogger):
    """Lightning's W&B logger with names, settings, samples and artifacts of this project and without duplicates."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        import wandb

        self.mode = wandb_mode(config)
        self.folder = folder
        wanted, environment = config.logging, os.environ
        name, group = names_of_run(config, folder.path)
        super().__init__(
            project=wanted.project or environment.get("WANDB_PROJECT") or PROJECT,
            name=wanted.name or environment.get("WANDB_NAME") or name,
            group=wanted.group or environment.get("WANDB_RUN_GROUP") or group,
            job_type=environment.get("WANDB_JOB_TYPE") or "train",
            id=folder.run_id,
            save_dir=str(folder.path),
            tags=wanted.tags or None,
            config=dataclasses.asdict(config),
            resume="allow",
            # WandbLogger(offline=True) would set WANDB_MODE for every process started from here.
            mode=self.mode,
            settings=wandb.Settings(x_transaction_log_flush_interval=WRITE_OUT_SECONDS, **code_settings()),
        )
        self._given = WandbLedger(folder.path / "wandb" / "given.jsonl")
        self._before = self._given.rows

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a record of ``metrics.jsonl``, unless an earlier start of this run has logged it."""
        numbers, step = numbers_of(metrics), step or 0
        if not self._given.note(step, numbers):
            return
        where: dict[str, Any] = {}
        if self._before and self.mode != "shared":
            # W&B counts its own rows. Offline the count would start at 0 with every start, and rows would collide when
            # the starts are synced to one page.
            where = {"step": max(self._before, self.experiment.step), "commit": True}
            self._before = 0
        self.experiment.log({**numbers, STEP: step}, **where)

    @rank_zero_only
    def save_settings(self) -> None:
        """Save config.yaml to the page's files, in a folder because W&B has a config.yaml of its own."""
        file = Path(self.experiment.dir) / "settings" / "config.yaml"
        file.parent.mkdir(exist_ok=True)
        shutil.copy(self.folder.path / "config.yaml", file)
        self.experiment.save(str(file), base_path=self.experiment.dir, policy="now")

    @rank_zero_only
    def log_samples(self, samples: JudgedSamples, step: int) -> None:
        """Log a table of texts with their verdicts and their tokens coloured by predicted R."""
        import wandb

        data = [[*row[:-1], wandb.Html(row[-1], inject=False)] for row in rows(samples)]
        with self._staging():
            self.log_metrics({"samples": wandb.Table(columns=list(COLUMNS), data=data)}, step)

    @rank_zero_only
    def log_checkpoint(self, method: str) -> None:
        """Log the last checkpoint as an artifact of type `model`; offline, syncing reads it from the run folder."""
        import wandb

        file = (self.folder.path / "checkpoints" / LAST).absolute()
        artifact = wandb.Artifact(f"model-{self.folder.run_id}", type="model", metadata={"method": method})
        # Checkpoints are replaced, never modified, so W&B can upload them in place, without a copy in the home folder.
        artifact.add_file(str(file), policy="immutable")
        self.experiment.log_artifact(artifact)

    @rank_zero_only
    def log_rollouts(self, folders: Mapping[str, Sequence[Path]]) -> None:
        """Log rollout stores as an artifact of references: the location and checksum of every file, no content.

        Args:
            folders: folders of the stores, by split.
        """
        import wandb

        artifact = wandb.Artifact(f"rollouts-{self.folder.run_id}", type="rollouts")
        for split, places in folders.items():
            for place in dict.fromkeys(path.absolute() for path in places):
                artifact.add_reference(place.as_uri(), name=f"{split}/{place.name}")
        self.experiment.log_artifact(artifact)

    @contextmanager
    def _staging(self) -> Iterator[None]:
        """Make W&B stage files for upload in the run folder, unless the user set WANDB_DATA_DIR.

        The default is the home folder, which is small on many machines and does not separate the files of runs.
        """
        if "WANDB_DATA_DIR" in os.environ:
            yield
            return
        os.environ["WANDB_DATA_DIR"] = str((self.folder.path / "wandb" / "data").absolute())
        try:
            yield
        finally:
            del os.environ["WANDB_DATA_DIR"]
