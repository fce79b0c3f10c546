"""The demo: one short sentence about an everyday noun, from a model that rambles. It needs no data and no download.

The prompt asks for a short sentence; the oracle enforces it: at most fifteen words, the noun among them, and an end.
The data are 300 nouns written for the demo, 60 of them held out.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.tasks.json_rows import read_rows, text_of
from datamodules.tasks.jsonl import identity
from datamodules.tasks.task import TaskSource
from dinado.oracles import LengthOracle, LexicalOracle
from dinado.prompt import Prompt
from workbench.settings.data_settings import DataConfig
from workbench.settings.tasks import TaskConfig

DATA = Path(__file__).parent / "data"
REQUEST = 'Write one short sentence about the word "{word}".'
MAX_WORDS = 15


def source(task: TaskConfig, data: DataConfig) -> TaskSource:
    """Return a prompt for every noun of the demo, and its oracle; the task has no settings of its own."""
    oracle = LengthOracle(max_words=MAX_WORDS) & LexicalOracle()
    return TaskSource(_prompts("train"), _prompts("val"), oracle=oracle, identity=identity)


def _prompts(split: str) -> list[Prompt]:
    prompts = []
    for place, row in read_rows(DATA / f"nouns_{split}.jsonl"):
        word = text_of(row, "word", place, "the demo's own data")
        prompts.append(Prompt(id=row["id"], text=REQUEST.format(word=word), data={"concepts": [word]}))
    return prompts
