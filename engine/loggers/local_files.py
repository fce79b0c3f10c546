"""Numbers in files of the run folder: ``metrics.jsonl``, a CSV table, TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from workbench.run_folder import RunFolder


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Without the epoch, which Lightning adds to some records: all is counted in optimiser steps here."""
    return {key: value for key, value in metrics.items() if key != "epoch"}


class MetricsFile(Logger):
    """Lightning logger that appends to ``metrics.jsonl``, one object for each step."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        """Experiment."""
        return self.folder.path.parent.name

    @property
    def version(self) -> str:
        """Run id."""
        return self.folder.run_id

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The resolved configuration is in config.yaml already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append the numbers of a step."""
        self.folder.append_metrics({"step": step or 0, **numbers_of(metrics)})


class CsvTable(CSVLogger):
    """Lightning's CSV logger on ``csv/metrics.csv``: a row for each line of ``metrics.jsonl``."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.path, name="", version="csv")

    @property
    def experiment(self) -> Any:
        """Lightning's writer.

        It deletes the table of an earlier start, as we do ourselves, without the warning: :meth:`rewrite` has what is
        to be kept of it.
        """
        if self._experiment is None and rank_zero_only.rank == 0:
            (Path(self.log_dir) / "metrics.csv").unlink(missing_ok=True)
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        super().log_metrics(numbers_of(metrics), step)

    @rank_zero_only
    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Begin anew, with records of ``metrics.jsonl`` that include whatever is in the table and is to stay."""
        self._experiment = None
        for record in records:
            self.log_metrics({key: value for key, value in record.items() if key != "step"}, record["step"])
        self.save()


class EventFiles(TensorBoardLogger):
    """Lightning's TensorBoard logger on ``tensorboard/``; values are float32 there.

    Args:
        resumed_at: the step that a run goes on from; TensorBoard hides what an earlier start wrote from there on.
    """

    def __init__(self, folder: RunFolder, resumed_at: int | None = None) -> None:
        super().__init__(folder.path, name="", version="tensorboard", purge_step=resumed_at)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a point to the curve of each number."""
        super().log_metrics(numbers_of(metrics), step)

    @rank_zero_only
    def save(self) -> None:
        """Write out what is in memory; Lightning would add a file of settings, which are in config.yaml already."""
        self.experiment.flush()
