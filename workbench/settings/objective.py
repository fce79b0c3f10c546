"""The settings of the ``objective`` section: the loss over per-token statistics, a block for each of its terms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeVar

from workbench.settings import conditions as when
from workbench.settings.fields import BELOW_ONE, FRACTION, NOT_NEGATIVE, POSITIVE, section, setting
from workbench.settings.methods import METHODS

T = TypeVar("T")


@dataclass
class OracleBlock:
    """Cross entropies of the predicted R against the oracle's verdict."""

    token_ce: float = setting(
        1.0,
        "Weight of the cross entropy at every response token (NADO, equation 8).",
        NOT_NEGATIVE,
        was="objective.token_ce",
    )
    terminal_ce: float = setting(
        0.0,
        "Weight of the cross entropy at the last token only (the published DiNADO loss has 1 here, 0 above).",
        NOT_NEGATIVE,
        was="objective.terminal_ce",
    )
    value_ce: float = setting(
        0.0,
        """Weight of the cross entropy of V, the value before each token. With objective.norm.kind=mean it trains the
        norm head alone.""",
        NOT_NEGATIVE,
        was="objective.value_ce",
    )
    overflow: float = setting(
        1.0,
        "Weight of relu(log R)^2, which keeps an unbounded R below 1 (Hard, and the mean norm).",
        NOT_NEGATIVE,
        unread=when.bounded,
        was="objective.overflow",
    )


@dataclass
class ConsistencyBlock:
    """Forward consistency: the value of a prefix is the base's expectation of the next value."""

    weight: float = setting(
        0.5,
        "Weight of forward consistency, summed over tokens.",
        NOT_NEGATIVE,
        unread=when.consistent,
        was="objective.regulariser",
    )
    direction: Literal["expected_first", "predicted_first"] = setting(
        "expected_first",
        "f_KL(E || R) or f_KL(R || E), E being the base's expectation of the next R.",
        unread=when.no_consistency,
        was="objective.direction",
    )
    detach: Literal["none", "expected", "predicted", "values"] = setting(
        "none",
        "What is detached: one of the two sides, or `values`, which leaves a gradient to the ratios alone.",
        unread=when.no_consistency,
        was="objective.detach",
    )
    divergence: Literal["bernoulli", "poisson"] = setting(
        "bernoulli",
        "f_KL of Bernoulli means, or the generalised KL divergence of Poisson means.",
        unread=when.no_consistency,
        was="objective.consistency",
    )
    prompt: bool = setting(
        False,
        """Also tie the value before the first token to R after the prompt's last token, as published NADO does (nado);
        the value decides nothing that is decoded.""",
        unread=when.no_prompt_value,
    )


@dataclass
class NormBlock:
    """The norm of R over next tokens, which a head of its own predicts (Soft, Merge; the root of Hard)."""

    kind: Literal["linf", "mean"] = setting(
        "linf",
        "What the norm head predicts: the largest R over next tokens, or its mean under p (Soft, Merge).",
        unread=when.no_steps,
        was="objective.norm",
    )
    support: int = setting(
        0,
        "Take the L-infinity norm over this many likeliest tokens; 0 is the whole vocabulary (Soft, Merge).",
        NOT_NEGATIVE,
        unread=when.no_steps,
        was="objective.support",
    )
    input: Literal["base", "policy"] = setting(
        "base",
        """Whose states the norm head reads (dinado_merge, and the root of dinado_hard): the frozen base's, as
        published, or the policy's as it stands, detached, which saves a pass of the base.""",
        unread=when.no_policy_norm,
        was="objective.norm_input",
    )
    taps: list[float] = setting(
        [1.0],
        """Depths that the norm head reads (dinado_merge, and the root of dinado_hard), as fractions: 0 the token
        embeddings, 1 the last layer.""",
        FRACTION,
        unread=when.no_base_norm,
        was="objective.norm_taps",
    )


@dataclass
class PathBlock:
    """The telescoped value R(c) prod q/p, by which the ratios, not the norm alone, have to explain the oracle."""

    weight: float = setting(
        0.0,
        """Weight of the cross entropies on the telescoped value (nado, dinado_soft, dinado_merge; dinado_hard is
        nothing else).""",
        NOT_NEGATIVE,
        unread=when.telescopes,
        was="objective.path",
    )
    loss: Literal["bernoulli", "poisson"] = setting(
        "bernoulli",
        """Loss of the telescoped value (dinado_hard, and a path of weight above 0), which is not bounded by 1:
        `bernoulli` is the cross entropy with an overflow penalty, `poisson` the generalised KL divergence with slope
        R - C.""",
        unread=when.no_path,
        was="objective.path_loss",
    )


@dataclass
class LookaheadBlock:
    """A target for q at every prefix, from the values of the beginnings that likely tokens would make."""

    weight: float = setting(
        0.0,
        """Weight of KL(target || q) at every prefix, with the target p U^sharpness: U is the value of the beginning
        that each likely token would make, estimated from the oracle's `progress` (docs/methods.md). A prefix counts by
        its own U over the mean of all.""",
        NOT_NEGATIVE,
        was="objective.lookahead",
    )
    candidates: int = setting(
        16,
        "How many of the base's likeliest tokens are looked into at each position.",
        POSITIVE,
        unread=when.no_lookahead,
        was="targets.candidates",
    )
    sharpness: float = setting(
        1.0,
        "Power of U in the target; more than 1 makes up for values that see only part of what decides.",
        POSITIVE,
        unread=when.no_lookahead,
        was="objective.sharpness",
    )
    floor: float = setting(
        0.0,
        """What certain failure counts for in the target, U = floor + (1 - floor) R; above 0 keeps q from paying any
        price to avoid it.""",
        BELOW_ONE,
        unread=when.no_lookahead,
        was="objective.floor",
    )
    fade: float = setting(
        0.0,
        """Share of the weight that is lost, evenly, from the first optimiser step to the last: the target is a quick
        start whose values see only part of what decides; with 1 the other terms have the last word.""",
        FRACTION,
        unread=when.no_lookahead,
    )


@dataclass
class LikelihoodBlock:
    """The log-likelihood of accepted rollouts, whose only minimum is q*."""

    weight: float = setting(
        0.0,
        """Weight of -C log q(y|c), a rollout's verdict over the mean of all: the maximum-likelihood estimate of q*, in
        nats a text whatever the share of accepted ones.""",
        NOT_NEGATIVE,
    )


@dataclass
class ObjectiveSettings:
    """The loss over per-token statistics (docs/methods.md), a block for each of its terms."""

    masks: Literal["correct", "official"] = setting(
        "correct",
        """`official` is the published objective: the index arithmetic of its code (dinado_*: no first token, no
        end-of-sequence; nado: correct, with consistency.prompt), its weights, a learned root, no other terms, nothing
        rebalanced (docs/methods.md). What the same file or command line sets beside it counts.""",
        unread=when.no_block("oracle"),
    )
    oracle: OracleBlock = section(OracleBlock, unread=when.no_block("oracle"))
    consistency: ConsistencyBlock = section(ConsistencyBlock, unread=when.no_block("consistency"))
    norm: NormBlock = section(NormBlock, unread=when.no_block("norm"))
    path: PathBlock = section(PathBlock, unread=when.no_block("path"))
    lookahead: LookaheadBlock = section(LookaheadBlock, unread=when.no_block("lookahead"))
    likelihood: LikelihoodBlock = section(LikelihoodBlock, unread=when.no_block("likelihood"))

    def own(self, kind: type[T]) -> T:
        """Return the block of a method's own settings by its class (``Method.settings``)."""
        return next(value for value in vars(self).values() if isinstance(value, kind))


# Blocks of single methods come from the table, so that a method brings its settings in its own row.
ObjectiveConfig = dataclasses.make_dataclass(
    "ObjectiveConfig",
    [
        (row.name, row.settings, section(row.settings, unread=when.other_method(row.name)))
        for row in METHODS.values()
        if row.settings is not None
    ],
    bases=(ObjectiveSettings,),
    namespace={"__doc__": ObjectiveSettings.__doc__, "__module__": __name__},
)
