"""What the language model is asked, and the oracle that judges its answers."""

from datamodules.tasks.build_task import build_task
from datamodules.tasks.task import Task

__all__ = ["Task", "build_task"]
