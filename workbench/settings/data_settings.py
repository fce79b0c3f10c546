"""The settings of the sections ``base``, ``data``, ``rollouts`` and ``targets``: from a base to training targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.settings import conditions as when
from workbench.settings.fields import (
    BELOW_ONE,
    FRACTION,
    NOT_NEGATIVE,
    ONE_OR_MORE,
    POSITIVE,
    SEED,
    SHARE,
    setting,
)

DECODING = "decoding"


@dataclass
class BaseConfig:
    """The pretrained language model p(y|c)."""

    name: str = setting(
        "smollm2-135m-instruct",
        "Hub name, local path, or `smollm2-135m-instruct` (installed from its PyPI wheel, no hub needed).",
        unread=when.own_base,
        place=True,
    )
    run: str | None = setting(
        None,
        "An earlier run (runs/<experiment>/<id>) whose trained model becomes the base; overrides `base.name`.",
        unread=when.own_base,
        place=True,
    )
    revision: str | None = setting(None, "Hub revision.", unread=when.base_of_run)
    temperature: float = setting(
        1.0,
        "Temperature that is part of the base distribution: p = softmax(logits / temperature).",
        POSITIVE,
        unread=when.temperature_of_run,
    )
    chat_template: bool = setting(
        True, "Wrap prompts in the tokenizer's chat template, when it has one.", unread=when.base_of_run
    )
    system_prompt: str | None = setting(
        None,
        "System message of the chat template; null keeps the template's own default.",
        unread=when.base_of_run,
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32",
        "Storage type of the frozen weights; reductions over the vocabulary are float32 whatever it is.",
        role="outcome",
        agree="",
        unread=when.base_of_run,
    )


@dataclass
class DataConfig:
    """Where data lies and how much of it is used."""

    root: str | None = setting(
        None, "Data root; null reads the environment variable DINADO_DATA.", role="execution", place=True
    )
    cache: str = setting("cache", "Folder for converted models and rollout stores.", role="execution", place=True)
    states: Literal["auto", "off", "float32", "bfloat16", "float16"] = setting(
        "auto",
        """Keep the frozen base's hidden states with the rollouts, in this type, so that training need not run the base.
        `auto` keeps them in float32 where training reads each of them more than twice and they fit the limit.""",
        role="execution",
        unread=when.base_never_runs,
    )
    states_limit_gb: float = setting(
        4.0,
        "Most disk space, in GB, that the states of one run may take.",
        POSITIVE,
        role="execution",
        unread=when.base_never_runs,
    )
    train_prompts: int = setting(160, "Prompts whose rollouts are trained on; 0 takes all.", NOT_NEGATIVE)
    val_prompts: int = setting(
        48,
        "Held-out prompts used for every `val/` number; 0 takes all.",
        NOT_NEGATIVE,
        role="target",
        agree="the held-out data",
    )


@dataclass
class RolloutConfig:
    """What is drawn, in how many rounds, into an on-disk store (docs/rollouts.md)."""

    per_prompt: int = setting(16, "K, rollouts drawn for each prompt, over all rounds.", POSITIVE)
    rounds: int = setting(
        1,
        """Rounds of sampling, spread evenly over the optimiser steps: the first draws from the base, every later one
        from the model trained so far, and from the base too. Needs `targets.weights=balance` (or `importance`).""",
        POSITIVE,
    )
    until: float = setting(
        1.0,
        "Share of the optimiser steps over which the rounds are spread; the steps after it see all rollouts.",
        SHARE,
        unread=when.one_round,
    )
    base_share: float = setting(
        0.25,
        "Share of the base in the rounds after the first; 0 draws from the model alone, 1 from the base alone.",
        FRACTION,
        unread=when.one_round,
    )
    budget: Literal["even", "needed"] = setting(
        "even",
        "Rollouts of a prompt in the rounds after the first: as many for each, or more where few were accepted.",
        unread=when.one_round,
    )
    budget_cap: float = setting(
        4.0,
        "`needed`: no prompt gets more than this many times the even share.",
        ONE_OR_MORE,
        unread=when.even_budget,
    )
    max_new_tokens: int = setting(
        28,
        "Budget of a response; one that has not ended by then counts as truncated.",
        POSITIVE,
        role="target",
        agree=DECODING,
    )
    temperature: float = setting(
        1.0,
        """Proposal temperature on top of `base.temperature`; above 1 flattens, and needs `targets.weights` to make up
        for it.""",
        POSITIVE,
    )
    source: Literal["sample", "beam"] = setting(
        "sample",
        """Draw rollouts, or take the `per_prompt` likeliest ones of a beam search (needs
        `targets.weights=likelihood`).""",
    )
    engine: Literal["local", "openai"] = setting(
        "local",
        """Draw the training rollouts from the base here, or from an inference server (vLLM, SGLang; docs/engines.md).
        Held-out rollouts and later rounds are drawn here. Needs `targets.weights=importance` or `balance`.""",
    )
    url: str | None = setting(
        None,
        "Root of the server, such as http://localhost:8000; a key is read from the environment's OPENAI_API_KEY.",
        role="execution",
        unread=when.local_rollouts,
    )
    served_model: str | None = setting(
        None, "Name of the base on the server; null takes the only model there.", unread=when.local_rollouts
    )
    max_difference: float = setting(
        0.1,
        """Largest mean difference, in nats per token and block, between the server's log-probabilities and the base's;
        above it the rollouts are refused.""",
        POSITIVE,
        role="execution",
        unread=when.local_rollouts,
    )
    requests: int = setting(
        32, "Requests under way at a time, per process.", POSITIVE, role="execution", unread=when.local_rollouts
    )
    patience_s: float = setting(
        120.0,
        "How long a request is tried again while the server fails or restarts, in seconds.",
        NOT_NEGATIVE,
        role="execution",
        unread=when.local_rollouts,
    )
    timeout_s: float = setting(
        600.0, "How long one request may take, in seconds.", POSITIVE, role="execution", unread=when.local_rollouts
    )
    top_k: int = setting(0, "Truncate the proposal to the k likeliest tokens; 0 is off.", NOT_NEGATIVE)
    top_p: float = setting(1.0, "Truncate the proposal to the smallest set of this mass; 1 is off.", SHARE)
    truncated: Literal["fail", "score", "drop"] = setting(
        "fail",
        """Responses cut off by the budget: `fail` scores them 0, `score` lets the oracle judge them as they are,
        `drop` leaves them out.""",
        role="target",
        agree=DECODING,
    )
    block_size: int = setting(
        8,
        """Prompts that are sampled and stored together, the unit of resuming; the texts do not depend on it. In rounds,
        where a prompt gets fewer rollouts at a time, more prompts share a block.""",
        POSITIVE,
        role="execution",
    )
    seed: int = setting(
        0,
        "Seed of the rollouts, separate from the training seed so that seeds can share a store.",
        SEED,
        role="seed",
        repeats=2,
    )


@dataclass
class TargetConfig:
    """How stored rollouts become training targets."""

    weights: Literal["uniform", "importance", "likelihood", "balance"] = setting(
        "uniform",
        """What a rollout counts for, self-normalised per prompt: `importance` is p / s with its own proposal s,
        `balance` p over the mixture of all proposals so far, `likelihood` p itself over distinct responses.""",
    )
    complement: bool = setting(
        False,
        """`likelihood`: half of a prompt's rollouts stand for everything that is not among the other half.""",
    )
    smoothing: Literal["none", "pareto"] = setting(
        "none",
        "`pareto` replaces the largest weights of a prompt by what a fitted tail expects of them.",
        unread=when.uniform("smooth"),
    )
    clip: float = setting(
        10.0,
        "Largest weight, relative to the mean of its prompt; 0 never clips.",
        NOT_NEGATIVE,
        unread=when.uniform("clip"),
    )
    root: Literal["learned", "store"] = setting(
        "learned",
        "Success rate of a prompt, R(c): learned by the norm head, or known from the prompt's own K rollouts.",
        unread=when.no_root,
    )
    positives_share: float = setting(
        0.0,
        """Share of accepted rollouts in every optimiser step, reweighted so that the loss keeps its expectation; 0
        takes rollouts as they come. Helps where the oracle is rare.""",
        BELOW_ONE,
        unread=when.accepted_only,
    )
