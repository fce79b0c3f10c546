"""The demo: a sentence about an everyday noun, which has to mention a colour. Needs no data and no download.

300 nouns written for it, none of which is itself a colour, an animal or a number, so that the request never gives
the answer away; 60 of them are held out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.tasks.jsonl import identity, read_rows, text_of
from datamodules.tasks.task import TaskSource
from dinado.oracles import LengthOracle, Oracle, RegexOracle
from dinado.prompt import Prompt

if TYPE_CHECKING:
    from experiments.config import Config

DATA = Path(__file__).parent / "data"
REQUEST = 'Write one short sentence about the word "{word}".'
DEFAULT_ORACLE = "colour"

COLOURS = (
    "red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|gr[ae]y|golden|silver|crimson|scarlet|turquoise"
    "|teal|beige|indigo|maroon|magenta|emerald|amber|ivory|azure|navy"
)
NUMBERS = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    "|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundreds?|thousands?|millions?|dozens?"
)
ANIMALS = (
    "animals?|bears?|bees?|birds?|butterfl(?:y|ies)|cats?|cows?|deer|dogs?|ducks?|eagles?|elephants?|fish|fox(?:es)?"
    "|frogs?|goats?|horses?|kittens?|lions?|m(?:ouse|ice)|owls?|pupp(?:y|ies)|rabbits?|seagulls?|sheep|snakes?"
    "|squirrels?|tigers?|turtles?|whales?|wol(?:f|ves)"
)


def _whole_words(words: str) -> Callable[[], Oracle]:
    return lambda: RegexOracle(rf"\b(?:{words})\b")


DEMO_ORACLES: dict[str, Callable[[], Oracle]] = {
    "colour": _whole_words(COLOURS),
    # "one" is left out: it is a pronoun more often than a number.
    "number": lambda: RegexOracle(rf"\d|\b(?:{NUMBERS})\b"),
    "animal": _whole_words(ANIMALS),
    "exclaims_or_asks": lambda: RegexOracle(r"[!?][\"'”’)]*\s*\Z"),
    "no_comma": lambda: RegexOracle(r"\A[^,]*\Z"),
    "brief": lambda: LengthOracle(max_words=16),
}
"""Oracles that were tried for the demo, by what a text has to do; each is made anew by calling its entry."""


def source(config: Config) -> TaskSource:
    """Every noun of the demo; the task has no settings of its own."""
    oracle = DEMO_ORACLES[DEFAULT_ORACLE]()
    return TaskSource(_prompts("train"), _prompts("val"), oracle=oracle, identity=identity)


def _prompts(split: str) -> list[Prompt]:
    prompts = []
    for place, row in read_rows(DATA / f"nouns_{split}.jsonl"):
        word = text_of(row, "word", place, "the demo's own data")
        prompts.append(Prompt(id=row["id"], text=REQUEST.format(word=word), data={"word": word}))
    return prompts
