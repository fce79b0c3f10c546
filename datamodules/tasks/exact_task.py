"""Exact worlds: one empty prompt and an oracle over tokens, small enough that q* is known in closed form."""

from __future__ import annotations

from datamodules.tasks.task import TaskSource
from dinado.oracles import TokenOracle, token_dfa
from dinado.prompt import Prompt
from workbench.settings.data_settings import DataConfig
from workbench.settings.tasks import TaskConfig


def source(task: TaskConfig, data: DataConfig) -> TaskSource:
    """Return the single prompt (the base encodes it as its begin-of-sequence token 0) and the oracle of the settings.

    Held-out metrics come from fresh rollouts of the same prompt.
    """
    dfa = token_dfa(task.vocab_size, list(task.required), list(task.avoided), task.ends_with)
    prompt = Prompt(id="0", text="")
    return TaskSource(train=[prompt], val=[prompt], oracle=TokenOracle(dfa), identity=None)
