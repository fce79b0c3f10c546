"""A world of a few dozen texts for tests of decoding: the controlled model, the oracle, and every text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from helpers import random_network

from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_markov
from dinado.batch import RolloutBatch
from dinado.control.controlled_lm import ControlledLM
from dinado.oracles import Oracle
from dinado.prompt import Prompt

V, T = 4, 4
TEXTS = [[*p, 0] for i in range(T) for p in itertools.product(range(1, V), repeat=i)]
TEXTS += [list(p) for p in itertools.product(range(1, V), repeat=T)]


class Likes(Oracle):
    """Accepts texts with a 2, and others with a 3 by a fifth."""

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [1.0 if "2" in text else 0.2 if "3" in text else 0.0 for text in texts]


class Never(Oracle):
    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [0.0] * len(texts)


def controlled() -> ControlledLM:
    """A Markov base with a random oracle network."""
    return ControlledLM(random_network(BaseLM(*build_markov(V, seed=3))))


def batch_of_all(model: ControlledLM) -> RolloutBatch:
    """Every text, as a response to the empty prompt."""
    ids, mask = model.base.encode_prompts([Prompt("0", "")])
    return RolloutBatch.unjudged(ids, mask, [0] * len(TEXTS), TEXTS)


def log_p_of_all(model: ControlledLM) -> np.ndarray:
    """Log p of every text."""
    return model.base.log_probs(batch_of_all(model)).double().sum(1).numpy()


def target(model: ControlledLM, truncated: str = "score") -> tuple[np.ndarray, float]:
    """q* of every text, and R."""
    verdicts = np.array(Likes().score([], [model.base.decode(text) for text in TEXTS]))
    if truncated == "fail":
        verdicts *= [text[-1] == 0 for text in TEXTS]
    joint = np.exp(log_p_of_all(model)) * verdicts
    return joint / joint.sum(), float(joint.sum())
