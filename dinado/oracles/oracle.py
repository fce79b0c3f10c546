"""The oracle C(c, y): what judges a finished text, with everything it returns checked.

Axes: N texts.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dinado.errors import OracleError
from dinado.oracles.fingerprint import digest, source_of
from dinado.prompt import Prompt

Judge = Callable[[Sequence[Prompt], Sequence[str]], Tensor | Sequence[float]]
_ROUNDING = 1e-6  # a float32 softmax may sum to a hair above 1
_SHOWN = 80


class Oracle(abc.ABC):
    """Judges finished texts: 1 is obeyed, 0 is not, values between are probabilities.

    Subclasses implement :meth:`score` and keep their settings as attributes. Oracles are picklable and compose:
    ``a & b`` is the product, ``a | b`` is ``1 - (1 - a)(1 - b)`` and ``~a`` is ``1 - a``, which for 0/1 scores
    are and, or and not, and for probabilities treat the oracles as independent.
    """

    @abc.abstractmethod
    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor | Sequence[float]:
        """One number in [0, 1] for each of N texts; ``prompts[i]`` is what ``texts[i]`` responds to."""

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor | Sequence[float]:
        """How far the beginning of a response has come, in [0, 1]; higher where success is nearer.

        Used by ``objective.lookahead`` alone, to tell which tokens of a rollout helped. Judging the beginning as if it
        were the whole says when an oracle is satisfied; override this where the way there can be seen too.
        """
        return self.score(prompts, texts)

    @property
    def name(self) -> str:
        """What messages call this oracle."""
        return type(self).__name__

    def settings(self) -> Any:
        """What the oracle's behaviour depends on, besides its code: all attributes unless overridden.

        Override it when attributes change while scoring, or cannot be hashed.
        """
        return vars(self)

    @property
    def fingerprint(self) -> str:
        """A hash of the class, its code if it lies outside this package, and :meth:`settings`.

        The same in every process. Data that the oracle reads from disk or the network is not part of it.
        """
        cls = type(self)
        return digest(f"{cls.__module__}:{cls.__qualname__}", source_of(cls), self.settings())[:16]

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        """Scores, checked.

        Returns:
            float32 CPU tensor [N] in [0, 1].

        Raises:
            OracleError: the oracle raised, returned another number of scores than texts, or a score that is NaN
                or outside [0, 1]; the message names the oracle, the prompt and the text.
        """
        return self._checked(self.score, prompts, texts)

    def checked_progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        """:meth:`progress`, with the checks and errors of a score."""
        return self._checked(self.progress, prompts, texts)

    def _checked(self, judge: Judge, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        assert len(prompts) == len(texts), f"{len(prompts)} prompts for {len(texts)} texts"
        if not texts:
            return torch.zeros(0)
        try:
            scores_N = self._as_tensor(judge(prompts, texts))
        except OracleError:  # an oracle inside this one has already named the culprit
            raise
        except Exception as error:
            raise self._culprit(judge, prompts, texts, error) from error
        if scores_N.shape != (len(texts),):
            raise OracleError(
                f"oracle {self.name} returned scores of shape {tuple(scores_N.shape)} for {len(texts)} texts, the "
                f"first of {_where(prompts[0], texts[0])}; it must return one number for each text"
            )
        valid_N = (scores_N >= -_ROUNDING) & (scores_N <= 1 + _ROUNDING)  # false for NaN
        if not valid_N.all():
            first = int((~valid_N).nonzero()[0])
            raise OracleError(
                f"oracle {self.name} returned {scores_N[first].item():g} for "
                f"{_where(prompts[first], texts[first])}; scores must lie in [0, 1]"
            )
        return scores_N.clamp(0, 1)

    @staticmethod
    def _as_tensor(scores: Tensor | Sequence[float]) -> Tensor:
        if isinstance(scores, Tensor):
            return scores.detach().to("cpu", torch.float32)
        return torch.as_tensor(scores, dtype=torch.float32)

    def _culprit(self, judge: Judge, prompts: Sequence[Prompt], texts: Sequence[str], error: Exception) -> OracleError:
        """The message for an oracle that raised on a batch; texts are retried alone to find which one did it."""
        for prompt, text in zip(prompts, texts, strict=True):
            try:
                self._as_tensor(judge([prompt], [text]))
            except Exception as alone:
                return OracleError(f"oracle {self.name} failed on {_where(prompt, text)}: {_describe(alone)}")
        return OracleError(
            f"oracle {self.name} failed on a batch of {len(texts)} texts though on none of them alone, the first of "
            f"{_where(prompts[0], texts[0])}: {_describe(error)}"
        )

    def __and__(self, other: Oracle) -> Oracle:
        from dinado.oracles.compose import AllOf

        return AllOf(self, other) if isinstance(other, Oracle) else NotImplemented

    def __or__(self, other: Oracle) -> Oracle:
        from dinado.oracles.compose import AnyOf

        return AnyOf(self, other) if isinstance(other, Oracle) else NotImplemented

    def __invert__(self) -> Oracle:
        from dinado.oracles.compose import Not

        return Not(self)


def _where(prompt: Prompt, text: str) -> str:
    return f"prompt {prompt.id!r}, text {_shorten(text)!r}"


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {_shorten(' '.join(str(error).split()), 3 * _SHOWN)}"


def _shorten(text: str, width: int = _SHOWN) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
