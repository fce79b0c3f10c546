"""Rules across settings: ranges, combinations, and settings that would be ignored.

A setting that would be ignored is an error. Which settings those are depends on others (a key of ``task`` on
``task.name``, ``network`` on what is trained), and only the user who set both can have meant both:

* keys of ``task`` and ``oracle`` that belong to another choice are errors when they come from the same layer as
  the choice or a stronger one; inherited from a weaker layer they return to their default;
* settings that depend on the method are errors on the command line alone, so that one file can serve all methods.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dinado.errors import ConfigError
from experiments import logging_rules, rollout_rules, schema
from experiments.derived import EXACT_TASKS, depths_read, resolved_parameters
from experiments.origins import said, typed, weaker

if TYPE_CHECKING:
    from experiments.loader import Loaded

Test = tuple[Callable[[Any], bool], str]
POSITIVE: Test = (lambda x: 0 < x < math.inf, "must be above 0")
NOT_NEGATIVE: Test = (lambda x: 0 <= x < math.inf, "must be 0 or more")
FINITE: Test = (math.isfinite, "must be a finite number")
SHARE: Test = (lambda x: 0 < x <= 1, "must be above 0 and at most 1")
FRACTION: Test = (lambda x: 0 <= x <= 1, "must be from 0 to 1")
BELOW_ONE: Test = (lambda x: 0 <= x < 1, "must be at least 0 and below 1")
SEED: Test = (lambda x: 0 <= x < 2**32, "must be from 0 to 4294967295")

RANGES: dict[Test, str] = {
    SEED: "seed task.seed rollouts.seed",
    POSITIVE: "optim.batch_tokens optim.micro_tokens "
    "base.temperature task.length rollouts.per_prompt rollouts.rounds rollouts.max_new_tokens rollouts.temperature "
    "rollouts.block_size network.layers network.width network.heads lora.r lora.alpha optim.lr optim.norm_lr "
    "optim.batch_size optim.micro_batch optim.rows_per_prompt optim.steps trainer.devices trainer.num_nodes "
    "data.states_limit_gb "
    "objective.sharpness targets.candidates trainer.log_every trainer.checkpoint_every eval.samples_per_prompt "
    "eval.rollouts_per_prompt eval.exact_samples",
    NOT_NEGATIVE: "alpha task.num_concepts oracle.min_words oracle.max_words data.train_prompts data.val_prompts "
    "rollouts.top_k targets.clip objective.token_ce objective.terminal_ce objective.value_ce objective.regulariser "
    "objective.support objective.overflow objective.path objective.lookahead optim.norm_steps "
    "optim.weight_decay optim.clip_norm trainer.val_every eval.best_of eval.show",
    FINITE: "task.rarity",
    SHARE: "rollouts.top_p rollouts.until",
    FRACTION: "rollouts.base_share network.taps objective.norm_taps optim.warmup",
    BELOW_ONE: "lora.dropout optim.betas targets.positives_share objective.floor",
    (lambda x: x >= 1, "must be 1 or more"): "rollouts.budget_cap",
    (lambda x: x >= 2, "must be 2 or more, the end of sequence included"): "task.vocab_size",
    (lambda x: x >= 1, "must be a token, not the end of sequence (0)"): "task.required task.avoided task.ends_with",
}


def check(loaded: Loaded) -> None:
    """Raise a :class:`ConfigError` for the first rule that is broken; reset inherited settings of other tasks."""
    for rule in (
        _ranges,
        _ignored_choices,
        _horizon,
        _parameters,
        _ignored_by_method,
        rollout_rules.proposal,
        _objective,
        _batch,
        _shards,
        _task,
        _oracle,
        logging_rules.logging,
    ):
        for problem in rule(loaded):
            raise ConfigError(problem)


def _ranges(loaded: Loaded) -> Iterator[str]:
    for (test, text), keys in RANGES.items():
        for key in keys.split():
            value = schema.get(loaded.config, key)
            items = value if isinstance(value, list | tuple) else [] if value is None else [value]
            if not all(map(test, items)):
                yield f"{said(loaded, key)}: {text}"


def _ignored_choices(loaded: Loaded) -> Iterator[str]:
    """Keys of ``task`` and ``oracle`` whose help assigns them to another choice."""
    for section in ("task", "oracle"):
        choice = schema.leaves()[f"{section}.name"]
        chosen = schema.get(loaded.config, choice.key)
        for leaf in schema.leaves().values():
            owners = leaf.owners(choice.choices) if leaf.section == section else ()
            source, chooser = (loaded.layers.index(loaded.provenance[key]) for key in (leaf.key, choice.key))
            if not owners or chosen in owners or source == 0:
                continue
            if typed(loaded, leaf.key) or (source >= chooser and schema.get(loaded.config, leaf.key) != leaf.default):
                yield f"{said(loaded, leaf.key)}: ignored by {choice.key}={chosen}, it belongs to {', '.join(owners)}"
            schema.put(loaded.config, leaf.key, copy.copy(leaf.default))
            loaded.provenance[leaf.key] = loaded.layers[0]


def _horizon(loaded: Loaded) -> Iterator[str]:
    """In an exact world a response that reaches `task.length` is complete: sampling must end there and judge it."""
    if loaded.config.task.name not in EXACT_TASKS:
        return
    for key, value in (("rollouts.max_new_tokens", loaded.config.task.length), ("rollouts.truncated", "score")):
        if typed(loaded, key) and schema.get(loaded.config, key) != value:
            yield f"{said(loaded, key)}: in an exact world it is always {value}; leave it out"
        schema.put(loaded.config, key, value)


def _parameters(loaded: Loaded) -> Iterator[str]:
    config = loaded.config
    allowed = {"nado": ("network",), "dinado_soft": ("network",), "dinado_hard": ("network", "lora", "full")}
    trainable = allowed.get(config.method, ("lora", "full"))
    if config.task.name == "exact_world":
        trainable = ("network",)
    if resolved_parameters(config) not in trainable and weaker(loaded, "parameters", "method", "task.name"):
        # A file chose it for its own method; the command line asks for another.
        config.parameters = "auto"
    if resolved_parameters(config) not in trainable:
        why = "task.name=exact_world has no weights to adapt" if config.task.name == "exact_world" else config.method
        yield f"{said(loaded, 'parameters')}: {why}; use {' or '.join((*trainable, 'auto'))}"


def _shards(loaded: Loaded) -> Iterator[str]:
    """What cannot be had together with a base whose layers lie on several processes."""
    config = loaded.config
    if not config.trainer.shard_base:
        return
    key = said(loaded, "trainer.shard_base")
    if config.trainer.devices == 1:
        yield f"{key}: trainer.devices=1 leaves nobody to share the base with; raise it"
    if resolved_parameters(config) == "full":
        yield f"{key}: parameters=full trains all of the base, and only what is frozen is shared out; use lora"
    if config.trainer.compile:
        yield f"{key}: layers that lie on several processes are not compiled; set trainer.compile=false"
    if config.task.name in EXACT_TASKS:
        yield f"{key}: the base of task.name={config.task.name} fits anywhere; leave it out"


def _ignored_by_method(loaded: Loaded) -> Iterator[str]:
    """Settings of the command line that the method, or what it trains, does not read."""
    config = loaded.config
    method, trained = config.method, resolved_parameters(config)
    soft = method in ("dinado_soft", "dinado_merge")
    bounded = method == "nado" or (soft and config.objective.norm == "linf" and config.objective.support == 0)
    consistent = "dinado_hard is forward-consistent by construction"
    rooted = method == "dinado_hard" and config.targets.root == "learned"
    no_norm = not (rooted or (method == "dinado_merge" and trained != "network")) and "no norm head reads the base here"
    no_link = config.objective.regulariser == 0 and "objective.regulariser is 0"
    no_lookahead = config.objective.lookahead == 0 and "objective.lookahead is 0"
    unread: dict[str, str | bool] = {
        "sft_data": method != "sft" and "it belongs to method=sft",
        "objective": method == "sft" and "method=sft has a likelihood loss",
        "objective.norm": not soft and "it belongs to dinado_soft, dinado_merge",
        "objective.support": not soft and "it belongs to dinado_soft, dinado_merge",
        "objective.overflow": bounded and not config.objective.path and "log R cannot rise above 0 here",
        "objective.regulariser": method == "dinado_hard" and consistent,
        "objective.norm_input": no_norm or (trained == "network" and "there is no policy, only a network"),
        "objective.norm_taps": no_norm,
        "objective.direction": consistent if method == "dinado_hard" else no_link,
        "objective.consistency": consistent if method == "dinado_hard" else no_link,
        "objective.detach": consistent if method == "dinado_hard" else no_link,
        "objective.path_loss": method != "dinado_hard"
        and not config.objective.path
        and "it belongs to dinado_hard, and to objective.path above 0",
        "objective.floor": no_lookahead,
        "objective.sharpness": no_lookahead,
        "targets.candidates": no_lookahead,
        "trainer.checkpointing": trained == "network" and "it belongs to policies, a network is small",
        "data.states": not depths_read(config) and "training never runs the frozen base here",
        "data.states_limit_gb": not depths_read(config) and "training never runs the frozen base here",
        "objective.path": method == "dinado_hard" and "its values are the telescoped ones already",
        "network": trained != "network" and f"{trained} is trained, not an oracle network (parameters={trained})",
        "lora": trained != "lora" and f"{trained} is trained, not adapters (parameters={trained})",
        "targets.root": (method == "sft" or (method == "nado" and not config.objective.path))
        and f"{method} has no norm to tie to it",
        "targets.positives_share": method == "sft" and "method=sft sees accepted rollouts only",
        "optim.norm_steps": (not soft or (method == "dinado_merge" and trained == "network"))
        and "it belongs to dinado_soft, and to dinado_merge where it adapts the base",
        "optim.norm_lr": not (soft or rooted) and "there is no norm head",
        "targets.clip": config.targets.weights == "uniform" and "targets.weights=uniform has nothing to clip",
        "targets.smoothing": config.targets.weights == "uniform" and "targets.weights=uniform has nothing to smooth",
    }
    if config.task.name in EXACT_TASKS:
        own = f"task.name={config.task.name} brings its own base"
        unread |= dict.fromkeys(
            ("base.name", "base.run", "base.revision", "base.chat_template", "base.system_prompt", "base.dtype"), own
        )
    elif config.base.run is not None:
        own = "base.run brings its own"
        unread |= dict.fromkeys(("base.revision", "base.chat_template", "base.system_prompt", "base.dtype"), own)
        if config.base.temperature == 1.0:
            unread["base.temperature"] = "at 1 the temperature of base.run stays; any other value replaces it"
    for prefix, reason in unread.items():
        for key in typed(loaded, prefix) if reason else ():
            yield f"{said(loaded, key)}: ignored, {reason}"
    if len(typed(loaded, "base.run", "base.name")) == 2 and config.base.run is not None:
        yield f"{said(loaded, 'base.name')}: ignored, base.run replaces it; give one of them"


def _objective(loaded: Loaded) -> Iterator[str]:
    config, objective = loaded.config, loaded.config.objective
    learns = objective.token_ce or objective.terminal_ce or (objective.value_ce and objective.regulariser)
    learns = learns or objective.lookahead
    if config.method != "sft" and not learns:
        yield f"{said(loaded, 'objective.token_ce')}: objective.terminal_ce is 0 too, so nothing is learned"
    if config.method in ("dinado_soft", "dinado_merge") and objective.norm == "mean" and objective.support:
        yield f"{said(loaded, 'objective.support')}: ignored by objective.norm=mean; set objective.support=0"
    if not objective.norm_taps:
        yield f"{said(loaded, 'objective.norm_taps')}: the norm head needs at least one depth, such as [1.0]"
    if resolved_parameters(config) == "network":
        if config.network.width % config.network.heads:
            yield f"{said(loaded, 'network.width')}: not divisible by network.heads={config.network.heads}"
        if config.network.pointer and config.network.head != "tied":
            yield f"{said(loaded, 'network.pointer')}: it points into the base's embeddings; set network.head=tied"
        if not config.network.taps:
            yield f"{said(loaded, 'network.taps')}: the network needs at least one layer of the base, such as [1.0]"


def _batch(loaded: Loaded) -> Iterator[str]:
    optim, trainer = loaded.config.optim, loaded.config.trainer
    processes = trainer.devices * trainer.num_nodes
    if optim.batch_tokens is not None and optim.micro_batch is not None:
        yield f"{said(loaded, 'optim.micro_batch')}: counts rollouts, and optim.batch_tokens is set; use micro_tokens"
    if optim.batch_tokens is None and optim.micro_tokens is not None:
        yield f"{said(loaded, 'optim.micro_tokens')}: belongs to optim.batch_tokens, which is null"
    if optim.batch_tokens is None and optim.batch_size % (processes * (optim.micro_batch or 1)):
        parts = f"trainer.devices={trainer.devices} * trainer.num_nodes={trainer.num_nodes}"
        parts += f" * optim.micro_batch={optim.micro_batch}" if optim.micro_batch else ""
        yield f"{said(loaded, 'optim.batch_size')}: not divisible by {parts}"


def _task(loaded: Loaded) -> Iterator[str]:
    task = loaded.config.task
    if task.name in EXACT_TASKS:
        for key in ("required", "avoided", "ends_with"):
            value = getattr(task, key)
            tokens = value if isinstance(value, list) else [] if value is None else [value]
            if any(token >= task.vocab_size for token in tokens):
                yield f"{said(loaded, f'task.{key}')}: outside task.vocab_size={task.vocab_size}"
        if both := sorted(set(task.avoided) & {*task.required, task.ends_with}):
            yield f"{said(loaded, 'task.avoided')}: token {both[0]} is also required"
        if (needed := len({*task.required, task.ends_with} - {None})) > task.length:
            yield f"{said(loaded, 'task.length')}: too short for {needed} required tokens"
    elif task.name == "jsonl" and task.path is None:
        yield f"{said(loaded, 'task.name')}: needs task.path, a file of prompts"
    elif task.name == "commongen" and "{words}" not in task.template:
        yield f"{said(loaded, 'task.template')}: has no {{words}} to be replaced by the concepts"


def _oracle(loaded: Loaded) -> Iterator[str]:
    oracle, task = loaded.config.oracle, loaded.config.task.name
    if task in EXACT_TASKS and oracle.name != "task":
        yield f"{said(loaded, 'oracle.name')}: task.name={task} is exact for its own oracle only; use oracle.name=task"
    if oracle.name == "user":
        if not re.fullmatch(r"[\w.]+:[\w.]+", oracle.function or ""):
            yield f"{said(loaded, 'oracle.function')}: oracle.name=user needs an importable module:callable"
    elif oracle.name == "regex":
        if oracle.pattern is None:
            yield f"{said(loaded, 'oracle.name')}: needs oracle.pattern"
        else:
            try:
                re.compile(oracle.pattern)
            except re.error as error:
                yield f"{said(loaded, 'oracle.pattern')}: not a regular expression: {error}"
    elif oracle.name == "length":
        if oracle.min_words == 0 and oracle.max_words is None:
            yield f"{said(loaded, 'oracle.name')}: needs oracle.min_words or oracle.max_words"
        if oracle.max_words is not None and oracle.max_words < oracle.min_words:
            yield f"{said(loaded, 'oracle.max_words')}: below oracle.min_words={oracle.min_words}"
