"""The oracle C(c, y), which judges finished texts and whose return values are all checked.

Axes: N texts.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dinado.errors import OracleError, ProcessError
from dinado.oracles.fingerprint import digest, source_of
from dinado.oracles.imported_code import imported_files
from dinado.prompt import Prompt

Judge = Callable[[Sequence[Prompt], Sequence[str]], Tensor | Sequence[float]]
_ROUNDING = 1e-6  # a float32 softmax may sum to slightly more than 1
_SHOWN = 80
_IDENTITY = "_identity"  # attribute that holds the fingerprint once it has been taken


class Oracle(abc.ABC):
    """A judge of finished texts: 1 is obeyed, 0 is not, values between are probabilities.

    Subclasses implement :meth:`score` and keep their settings as attributes. Oracles are picklable and compose:
    ``a & b`` is the product, ``a | b`` is ``1 - (1 - a)(1 - b)`` and ``~a`` is ``1 - a``, which for 0/1 scores
    are and, or and not, and for probabilities treat the oracles as independent.
    """

    @abc.abstractmethod
    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor | Sequence[float]:
        """Return one number in [0, 1] for each of N texts; ``texts[i]`` is a response to ``prompts[i]``."""

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor | Sequence[float]:
        """Return the progress of unfinished responses, in [0, 1]; higher where success is nearer.

        It is used by ``objective.lookahead`` alone, to tell which tokens of a rollout helped. The default judges the
        prefix as if it were the whole text, which shows only when the oracle is satisfied; override this method where
        partial progress can be measured.
        """
        return self.score(prompts, texts)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027
        """Check, before anything is sampled, that the prompts have what the oracle needs of them; by default, nothing.

        Raises:
            OracleError: a prompt lacks something.
        """

    @property
    def name(self) -> str:
        """The name of this oracle in messages."""
        return type(self).__name__

    def settings(self) -> Any:
        """Return what the oracle's behaviour depends on besides its code: all attributes unless overridden.

        Override this method when attributes cannot be hashed.
        """
        return {name: value for name, value in vars(self).items() if name != _IDENTITY}

    @property
    def fingerprint(self) -> str:
        """A hash of the class, its code and the files that it imports, if outside this package, and :meth:`settings`.

        It is the same in every process. Data that the oracle reads from disk or the network is not part of it. It is
        taken once, at the latest before the first text is judged, so that an oracle may load a model at first use,
        keep a cache or count; a setting must not be changed afterwards.

        Raises:
            OracleError: a setting has no stable identity.
        """
        if not vars(self).get(_IDENTITY):
            cls = type(self)
            helpers = imported_files(cls.__module__) if source_of(cls) else []
            parts = [f"{cls.__module__}:{cls.__qualname__}", source_of(cls), self.settings()]
            self.adopt(digest(*parts, *([helpers] if helpers else []))[:16])
        return str(vars(self)[_IDENTITY])

    def adopt(self, fingerprint: str) -> None:
        """Take over the fingerprint that another process of this run has computed."""
        vars(self)[_IDENTITY] = fingerprint

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        """Score texts and check the scores.

        Returns:
            float32 CPU tensor [N] in [0, 1].

        Raises:
            OracleError: the oracle raised, returned another number of scores than texts, or a score that is NaN
                or outside [0, 1]; the message names the oracle, the prompt and the text.
        """
        return self._checked(self.score, prompts, texts)

    def checked_progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        """Return :meth:`progress`, with the checks and errors of a score."""
        return self._checked(self.progress, prompts, texts)

    def _checked(self, judge: Judge, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        assert len(prompts) == len(texts), f"{len(prompts)} prompts for {len(texts)} texts"
        if not texts:
            return torch.zeros(0)
        if _IDENTITY not in vars(self):
            try:
                _ = self.fingerprint
            except OracleError:  # whoever needs a fingerprint gets this error; scores need none
                self.adopt("")
        try:
            scores_N = self._as_tensor(judge(_copies(prompts), list(texts)))
        except (OracleError, ProcessError):  # an oracle inside this one, or another process, has named the culprit
            raise
        except (Exception, SystemExit) as error:
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

    def _culprit(
        self, judge: Judge, prompts: Sequence[Prompt], texts: Sequence[str], error: BaseException
    ) -> OracleError:
        """Return the error for an oracle that raised on a batch; texts are retried one by one to find the cause."""
        for prompt, text in zip(prompts, texts, strict=True):
            try:
                self._as_tensor(judge(_copies([prompt]), [text]))
            except (Exception, SystemExit) as alone:
                return OracleError(f"oracle {self.name} failed on {_where(prompt, text)}: {_describe(alone)}")
        return OracleError(
            f"oracle {self.name} failed on a batch of {len(texts)} texts though on none of them alone, the first of "
            f"{_where(prompts[0], texts[0])}: {_describe(error)}"
        )

    def __and__(self, other: Oracle) -> Oracle:
        return AllOf(self, other) if isinstance(other, Oracle) else NotImplemented

    def __or__(self, other: Oracle) -> Oracle:
        return AnyOf(self, other) if isinstance(other, Oracle) else NotImplemented

    def __invert__(self) -> Oracle:
        return Not(self)


class _Pair(Oracle):
    """Two oracles; each is called with its own checks, so that an error names the part that failed."""

    symbol: str

    def __init__(self, left: Oracle, right: Oracle) -> None:
        self.left = left
        self.right = right

    @property
    def name(self) -> str:
        return f"({self.left.name} {self.symbol} {self.right.name})"

    def settings(self) -> Any:
        return self.left.fingerprint, self.right.fingerprint

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        self.left.check_prompts(prompts)
        self.right.check_prompts(prompts)


class AllOf(_Pair):
    """The product of two oracles, ``a & b = a b``."""

    symbol = "&"

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return self.left(prompts, texts) * self.right(prompts, texts)

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return (self.left.checked_progress(prompts, texts) + self.right.checked_progress(prompts, texts)) / 2


class AnyOf(_Pair):
    """The disjunction of two oracles, ``a | b = 1 - (1 - a)(1 - b)``."""

    symbol = "|"

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return 1 - (1 - self.left(prompts, texts)) * (1 - self.right(prompts, texts))

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return self.left.checked_progress(prompts, texts).maximum(self.right.checked_progress(prompts, texts))


class Not(Oracle):
    """The negation of an oracle, ``~a = 1 - a``; ``~~a`` is ``a`` itself."""

    def __init__(self, inner: Oracle) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return f"~{self.inner.name}"

    def settings(self) -> Any:
        return self.inner.fingerprint

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        self.inner.check_prompts(prompts)

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return 1 - self.inner(prompts, texts)

    def __invert__(self) -> Oracle:
        return self.inner


def _copies(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Copy prompts, each once, so that what an oracle writes into ``prompt.data`` changes nothing of the task."""
    copies: dict[int, Prompt] = {}
    for prompt in prompts:
        if id(prompt) not in copies:
            copies[id(prompt)] = dataclasses.replace(prompt, data=copy.deepcopy(prompt.data))
    return [copies[id(prompt)] for prompt in prompts]


def _where(prompt: Prompt, text: str) -> str:
    return f"prompt {prompt.id!r}, text {_shorten(text)!r}"


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {_shorten(' '.join(str(error).split()), 3 * _SHOWN)}"


def _shorten(text: str, width: int = _SHOWN) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
