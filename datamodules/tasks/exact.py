"""Exact worlds: one empty prompt and an oracle over tokens, small enough that q* is known in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamodules.tasks.task import TaskSource
from dinado.oracles import TokenOracle, token_dfa
from dinado.prompt import Prompt

if TYPE_CHECKING:
    from experiments.config import Config


def source(config: Config) -> TaskSource:
    """The single prompt (the base encodes it as its begin-of-sequence token 0) and the oracle of ``config.task``.

    Held-out numbers come from fresh rollouts of the same prompt.
    """
    task = config.task
    dfa = token_dfa(task.vocab_size, list(task.required), list(task.avoided), task.ends_with)
    prompt = Prompt(id="0", text="")
    return TaskSource(train=[prompt], val=[prompt], oracle=TokenOracle(dfa), identity=None)
