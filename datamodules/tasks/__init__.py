"""Tasks: prompts for the language model, and the oracle that judges its responses."""

from datamodules.tasks.build_task import build_task
from datamodules.tasks.task import Task

__all__ = ["Task", "build_task"]
