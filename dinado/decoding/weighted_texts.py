"""Texts of a controlled model with their importance weights toward q*.

A text y of q counts w(y) = p(y) C(y) / q(y): its mean over q is R(c), and texts chosen in proportion to it come from
q* in the limit. Axes: K texts of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.log_weights import log_mean
from dinado.evaluation.judged_samples import JudgedSamples, sample_and_judge
from dinado.oracles import Oracle
from dinado.prompt import Prompt


@dataclass
class WeightedTexts:
    """K texts for one prompt.

    Attributes:
        samples: the texts, with verdicts and log-probabilities.
        log_weight_K: log p C / q, float64, and -inf for a rejected text; of particles, the weight that includes what
            was resampled on the way.
    """

    samples: JudgedSamples
    log_weight_K: np.ndarray

    @classmethod
    def of(cls, samples: JudgedSamples) -> WeightedTexts:
        """Weigh the texts of one prompt."""
        with np.errstate(divide="ignore"):
            log_verdict_K = np.log(np.array(samples.score, dtype=np.float64))
        return cls(samples, np.array(samples.log_p) - np.array(samples.log_q) + log_verdict_K)

    @property
    def log_z(self) -> float:
        """Log of the mean weight, an estimate of log R(c); -inf if no text has a weight."""
        return log_mean(self.log_weight_K)

    @property
    def any_accepted(self) -> bool:
        """Whether a text has a weight above 0."""
        return bool(np.isfinite(self.log_weight_K).any())


def draw_weighted(
    model: ControlledLM,
    oracle: Oracle,
    prompts: Sequence[Prompt],
    *,
    texts: int,
    max_new_tokens: int,
    truncated: str,
    seed: int,
    first: int = 0,
    places: Sequence[int] | None = None,
    offset: int = 0,
) -> list[WeightedTexts]:
    """Draw and weigh K texts for each prompt; a prompt is encoded once for all of them.

    Args:
        texts: K.
        truncated: the rule for texts that the budget cuts off: `fail` or `score`.
        first: number of texts of each prompt that were drawn before; their random streams are not used again.
        places: positions of the prompts to draw for; None for all.
        offset: number of the first prompt, which names its random streams.
    """
    places = range(len(prompts)) if places is None else places
    drawn = sample_and_judge(
        model,
        model.base,
        oracle,
        prompts,
        per_prompt=texts,
        max_new_tokens=max_new_tokens,
        truncated=truncated,
        seed=seed,
        places=places,
        stream="exact decoding",
        first=first,
        offset=offset,
        block=max(1, ROWS // texts),
    )
    return [WeightedTexts.of(drawn.take(range(i * texts, (i + 1) * texts))) for i in range(len(places))]


ROWS = 256
"""Texts that are sampled together."""
