"""The protocol of a parameterisation, the trained weights: an oracle network beside the base, adapters inside it, all.

A parameterisation turns a batch into vocabulary statistics and the states that a norm head may read, decodes, and
implements everything else that depends on the trained weights. No code outside this package tests which one it is.

Axes: B rollouts, T response tokens, N rows, L new positions, V vocabulary, D and E widths.
"""

from __future__ import annotations

import abc
import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn
from transformers import Cache

from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.errors import UserError
from dinado.objectives.reduction import Head, Link
from dinado.objectives.vocabulary import VocabularyStatistics


class Needs(NamedTuple):
    """The quantities that a method needs beyond log q, so that nothing else is computed.

    Attributes:
        maximum: the L-infinity norm of the scores.
        support: take it over this many likeliest tokens; 0 takes the whole vocabulary.
        taps: depths that a norm head reads, as fractions of the layers; empty for none.
        of_policy: read them from the policy as it stands, detached, which saves a pass of the base.
        prompt_score: the score of each prompt's last token, which only an oracle network can give.
    """

    maximum: bool = False
    support: int = 0
    taps: tuple[float, ...] = ()
    of_policy: bool = False
    prompt_score: bool = False


NOTHING_MORE = Needs()


class Scored(NamedTuple):
    """The outputs of the models on a batch.

    Attributes:
        statistics: the reductions over the vocabulary that losses need.
        taps: states ``[B, T, D]`` at the depths that were needed.
        own_state_BTE: the trained states.
        prompt_score_B: the score of the last token of each rollout's prompt, if it was needed; -inf for a prompt of one
            token, which nothing precedes.
    """

    statistics: VocabularyStatistics
    taps: tuple[Tensor, ...]
    own_state_BTE: Tensor
    prompt_score_B: Tensor | None = None


class VocabularyInputs(NamedTuple):
    """States and heads that give log p and the scores of every next token; see ``vocabulary_statistics``."""

    base_BTD: Tensor
    base_head: Head
    score_BTE: Tensor
    score_head: Head
    link: Link


class MatrixPair(NamedTuple):
    """A low-rank update ``scale * b_Or @ a_rI`` of one weight matrix, for optimisers that treat the two together."""

    a_rI: nn.Parameter
    b_Or: nn.Parameter
    scale: float


class Share(NamedTuple):
    """A factor R^alpha of what is decoded with."""

    scores: Parameterisation
    alpha: float


class CannotFold(UserError):
    """The error that trained weights cannot be folded into a plain model; the message gives the reason."""


class NoAdapter(UserError):
    """The error that trained weights are no adapter that peft loads."""


class Injection(NamedTuple):
    """What is needed to inject the same weights around the same base again, before their values are loaded.

    Attributes:
        settings: the keyword arguments of ``inject``, defaults included.
        names: the names of the trained weights.
    """

    settings: dict[str, Any]
    names: tuple[str, ...]


class Parameterisation(nn.Module, abc.ABC):
    """Trained weights around a frozen base.

    Attributes:
        base: the frozen base; its fingerprint names the pretrained weights alone.
        injection: how ``inject`` built the weights; None where the class was called itself.
    """

    injection: Injection | None = None

    is_policy: ClassVar[bool]
    """Whether it is a language model of its own, which decodes without a second model beside it."""

    def __init__(self, base: BaseLM) -> None:
        super().__init__()
        self.base = base

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make ``inject`` of every subclass remember its settings."""
        super().__init_subclass__(**kwargs)
        if isinstance(own := vars(cls).get("inject"), classmethod):
            cls.inject = classmethod(_remembering(own.__func__))  # type: ignore[method-assign,assignment]

    @classmethod
    @abc.abstractmethod
    def inject(cls, *args: Any, **settings: Any) -> Self:
        """Build the trained weights around a base, or inside it, so that p is unchanged at the start.

        It is called as ``inject(base, link=..., seed=..., **settings)``.

        Args:
            base: the frozen base.
            link: how a network's output becomes a score; a policy's score is always log q - log p.
            seed: names the random stream of the initialisation.
            settings: the settings of its section of the configuration.

        Raises:
            UserError: the base has no place for them.
        """

    @abc.abstractmethod
    def forward(self, batch: RolloutBatch, needs: Needs = NOTHING_MORE) -> Scored:
        """Score a batch; gradients reach the trained weights only."""

    @abc.abstractmethod
    def log_q(self, batch: RolloutBatch) -> Tensor:
        """Compute log q of each response token under the controlled model, ``[B, T]`` float32, 0 on padding."""

    @abc.abstractmethod
    def vocabulary_inputs(self, batch: RolloutBatch) -> VocabularyInputs:
        """Compute the states of base and trained weights at each response token, with the heads that read them."""

    @property
    @abc.abstractmethod
    def own_width(self) -> int:
        """Width of the trained states."""

    @abc.abstractmethod
    def norm_input(self, batch: RolloutBatch, taps: Sequence[float]) -> tuple[Tensor, ...]:
        """Return the states that a norm head reads while it is trained alone, each ``[B, T, D]``.

        Args:
            taps: depths of the base, for a head that reads the base.
        """

    @abc.abstractmethod
    def shared_with_norm(self) -> list[nn.Parameter]:
        """List the trained weights below the norm head, which learn with it; empty where it reads frozen states."""

    def off(self) -> AbstractContextManager[None]:
        """Switch the trained weights off for a while, so that the base inside is the pretrained one."""
        return self.base.adapters(on=False)

    @property
    def switched_on(self) -> bool:
        """Whether the trained weights are on."""
        return self.base.switched_on

    def on(self) -> AbstractContextManager[None]:
        """Switch the trained weights on inside a block in which they are off."""
        return self.base.adapters(on=True)

    @abc.abstractmethod
    def fold(self) -> nn.Module:
        """Fold the trained weights into a plain model and return it; this object must not be used afterwards.

        Raises:
            CannotFold: no plain model computes the same.
        """

    def save_adapter(self, folder: Path, base_name: str, revision: str | None) -> None:
        """Write the trained weights as an adapter folder of peft.

        Args:
            folder: an existing folder.
            base_name: name or folder of the pretrained model, which peft reads from the adapter's configuration.
            revision: of the base on a hub.

        Raises:
            NoAdapter: they are no adapter that peft knows.
        """
        raise NoAdapter(f"{type(self).__name__} has no adapter that peft can load")

    @abc.abstractmethod
    def change_norm(self) -> float:
        """Compute the Frobenius norm of the change of the weights since the start."""

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what a checkpoint holds: the trained weights by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def groups(self) -> list[list[nn.Parameter]]:
        """List the trained weights in groups that may have their own learning rates; one group by default."""
        return [list(self.trained().values())]

    def pairs(self) -> list[MatrixPair]:
        """List the low-rank pairs among the trained weights."""
        return []

    def recomputable(self) -> nn.Module | None:
        """Return the model whose layers may be recomputed in the backward pass; None where it does not pay."""
        return None

    @property
    def depths(self) -> tuple[float, ...]:
        """Depths of the base that decoding reads, as fractions of the layers; a policy reads none."""
        return ()

    @property
    @abc.abstractmethod
    def own_layers(self) -> int:
        """The number of cache layers that decoding needs besides those of the base."""

    @abc.abstractmethod
    def own_logits(
        self, ids_NL: Tensor, taps: Sequence[Tensor], cache: Cache, keep: int, where: dict[str, Tensor]
    ) -> Tensor:
        """Return log R after new tokens, or log q of a policy, up to a constant, ``[N, keep, V]`` float32.

        Args:
            taps: states of the base at :attr:`depths`, each ``[N, L, D]``.
            cache: the layers of its own, :attr:`own_layers` of them.
            keep: positions to form logits for, the last ones; 0 for all.
            where: attention mask and position ids.
        """

    def shares(self, alpha: float) -> list[Share]:
        """Return what is decoded with at a control strength: these weights alone."""
        return [Share(self, alpha)]


def _remembering(inject: Callable[..., Parameterisation]) -> Callable[..., Parameterisation]:
    """Return an ``inject`` that leaves its settings with what it builds."""
    signature = inspect.signature(inject)

    @functools.wraps(inject)
    def run(cls: type[Parameterisation], base: BaseLM, *args: Any, **kwargs: Any) -> Parameterisation:
        bound = signature.bind(cls, base, *args, **kwargs)
        bound.apply_defaults()
        _, _, *given = bound.arguments.items()
        settings: dict[str, Any] = {}
        for name, value in given:
            collects = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            settings |= copy.deepcopy(value if collects else {name: value})
        scores = inject(cls, base, *args, **kwargs)
        scores.injection = Injection(settings, tuple(scores.trained()))
        return scores

    return run
