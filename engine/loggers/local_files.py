"""Loggers that write to the run folder: ``metrics.jsonl``, a CSV table, TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from workbench.run_folder import RunFolder


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the epoch, which Lightning adds to some records, because the project counts in optimiser steps."""
    return {key: value for key, value in metrics.items() if key != "epoch"}


class MetricsFile(Logger):
    """A Lightning logger that appends to ``metrics.jsonl``, one JSON object per record."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.folder.path.parent.name

    @property
    def version(self) -> str:
        """Run id."""
        return self.folder.run_id

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because config.yaml has the resolved configuration already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append the numbers of an optimiser step."""
        self.folder.append_metrics({"step": step or 0, **numbers_of(metrics)})


class CsvTable(CSVLogger):
    """Lightning's CSV logger on ``csv/metrics.csv``: a row for each line of ``metrics.jsonl``."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.path, name="", version="csv")

    @property
    def experiment(self) -> Any:
        """Lightning's CSV writer.

        This property deletes the table of an earlier start before Lightning would do so with a warning;
        :meth:`rewrite` writes again the rows to keep.
        """
        if self._experiment is None and rank_zero_only.rank == 0:
            (Path(self.log_dir) / "metrics.csv").unlink(missing_ok=True)
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row for an optimiser step."""
        super().log_metrics(numbers_of(metrics), step)

    @rank_zero_only
    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the table by records of ``metrics.jsonl``, which include all rows to keep."""
        self._experiment = None
        for record in records:
            self.log_metrics({key: value for key, value in record.items() if key != "step"}, record["step"])
        self.save()


class EventFiles(TensorBoardLogger):
    """Lightning's TensorBoard logger on ``tensorboard/``; values are float32 there.

    Args:
        resumed_at: step from which a run resumes; TensorBoard hides records of an earlier start from there on.
    """

    def __init__(self, folder: RunFolder, resumed_at: int | None = None) -> None:
        super().__init__(folder.path, name="", version="tensorboard", purge_step=resumed_at)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a point to the curve of each number."""
        super().log_metrics(numbers_of(metrics), step)

    @rank_zero_only
    def save(self) -> None:
        """Flush the event file, without Lightning's file of settings, which are in config.yaml already."""
        self.experiment.flush()
