"""Rules across settings: ranges, combinations, and settings that would be ignored.

A setting that would be ignored is an error, unless it was inherited. Whether it is ignored depends on other settings (a
key of ``task`` on ``task.name``, ``network`` on what is trained), which may come from another file:

* keys of ``task`` and ``oracle`` that belong to another choice are errors when they come from the same layer as
  the choice or a stronger one; inherited from a weaker layer they return to their default;
* settings whose metadata give a reason why they have no effect are errors on the command line alone, so that one file
  can serve all methods.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from dinado.errors import ConfigError
from workbench.settings import rollout_rules, schema, task_rules
from workbench.settings.conditions import wandb_mode
from workbench.settings.derived import (
    allowed_parameters,
    method_of,
    parameterisation_of,
    resolved_parameters,
    task_of,
)
from workbench.settings.loaded import Loaded, said, typed, weaker
from workbench.settings.parameterisations import NetworkConfig

ARTIFACTS = ("checkpoints", "rollouts")


def check(loaded: Loaded) -> None:
    """Raise a :class:`ConfigError` for the first broken rule; reset inherited settings of other tasks and oracles."""
    rules: tuple[Callable[[Loaded], Iterator[str]], ...] = (
        _ranges,
        _ignored_choices,
        task_rules.horizon,
        _parameters,
        _unread,
        rollout_rules.proposal,
        _objective,
        _network,
        _batch,
        _keep_best,
        _backend,
        _shards,
        task_rules.task,
        task_rules.oracle,
        _logging,
    )
    for rule in rules:
        for problem in rule(loaded):
            raise ConfigError(problem)


def _ranges(loaded: Loaded) -> Iterator[str]:
    for key, leaf in schema.leaves().items():
        if leaf.about.range is None:
            continue
        value = schema.get(loaded.config, key)
        items = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if not all(map(leaf.about.range.accepts, items)):
            yield f"{said(loaded, key)}: {leaf.about.range.message}"


def _ignored_choices(loaded: Loaded) -> Iterator[str]:
    """Refuse, or reset, keys of ``task`` and ``oracle`` that belong to another choice."""
    for leaf in schema.leaves().values():
        if not (owners := leaf.about.belongs_to):
            continue
        choice = schema.leaves()[f"{leaf.section}.name"]
        chosen = schema.get(loaded.config, choice.key)
        source, chooser = (loaded.layers.index(loaded.provenance[key]) for key in (leaf.key, choice.key))
        if chosen in owners or source == 0:
            continue
        if typed(loaded, leaf.key) or (source >= chooser and schema.get(loaded.config, leaf.key) != leaf.default):
            yield f"{said(loaded, leaf.key)}: ignored by {choice.key}={chosen}, it belongs to {', '.join(owners)}"
        schema.put(loaded.config, leaf.key, copy.copy(leaf.default))
        loaded.provenance[leaf.key] = loaded.layers[0]


def _parameters(loaded: Loaded) -> Iterator[str]:
    config = loaded.config
    trainable = allowed_parameters(config)
    if resolved_parameters(config) not in trainable and weaker(loaded, "parameters", "method", "task.name"):
        # A file chose it for its own method, and a stronger layer chose another method or task.
        config.parameters = "auto"
    if resolved_parameters(config) not in trainable:
        task = task_of(config)
        why = config.method if task.adaptable else f"task.name={task.name} has no weights to adapt"
        yield f"{said(loaded, 'parameters')}: {why}; use {' or '.join((*trainable, 'auto'))}"


def _unread(loaded: Loaded) -> Iterator[str]:
    """Refuse settings of the command line that have no effect, with the reason that their metadata give."""
    for key in typed(loaded, *schema.leaves()):
        for unread in schema.leaves()[key].unread:
            if (reason := unread(loaded.config)) is not None:
                yield f"{said(loaded, key)}: ignored, {reason}"
    if len(typed(loaded, "base.run", "base.name")) == 2 and loaded.config.base.run is not None:
        yield f"{said(loaded, 'base.name')}: ignored, base.run replaces it; give one of them"


def _objective(loaded: Loaded) -> Iterator[str]:
    config, objective = loaded.config, loaded.config.objective
    method = method_of(config)
    oracle = objective.oracle
    learns = oracle.token_ce or oracle.terminal_ce or (oracle.value_ce and objective.consistency.weight)
    if method.predicts_r and not (learns or objective.lookahead.weight or objective.likelihood.weight):
        key = said(loaded, "objective.oracle.token_ce")
        yield f"{key}: objective.oracle.terminal_ce is 0 too, so nothing is learned"
    if method.norm_head == "steps" and objective.norm.kind == "mean" and objective.norm.support:
        key = said(loaded, "objective.norm.support")
        yield f"{key}: ignored by objective.norm.kind=mean; set objective.norm.support=0"
    if not objective.norm.taps:
        yield f"{said(loaded, 'objective.norm.taps')}: the norm head needs at least one depth, such as [1.0]"


def _network(loaded: Loaded) -> Iterator[str]:
    if resolved_parameters(loaded.config) != "network":
        return
    network = loaded.config.own(NetworkConfig)
    if network.width % network.heads:
        yield f"{said(loaded, 'network.width')}: not divisible by network.heads={network.heads}"
    if network.pointer and network.head != "tied":
        yield f"{said(loaded, 'network.pointer')}: it points into the base's embeddings; set network.head=tied"
    if not network.taps:
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


def _keep_best(loaded: Loaded) -> Iterator[str]:
    if loaded.config.trainer.keep_best and not loaded.config.trainer.val_every:
        yield "trainer.keep_best=true: there is no validation to choose by; set trainer.val_every"


def _backend(loaded: Loaded) -> Iterator[str]:
    trainer = loaded.config.trainer
    if trainer.backend == "nccl" and trainer.accelerator == "cpu":
        yield f"{said(loaded, 'trainer.backend')}: nccl needs GPUs; take auto or gloo"


def _shards(loaded: Loaded) -> Iterator[str]:
    """Refuse settings that cannot be combined with a sharded base."""
    config = loaded.config
    if not config.trainer.shard_base:
        return
    key = said(loaded, "trainer.shard_base")
    if config.trainer.devices == 1:
        yield f"{key}: trainer.devices=1 leaves nobody to share the base with; raise it"
    if not parameterisation_of(config).frozen_base:
        trained = resolved_parameters(config)
        yield f"{key}: parameters={trained} trains all of the base, and only what is frozen is shared out; use lora"
    if config.trainer.compile:
        yield f"{key}: layers that lie on several processes are not compiled; set trainer.compile=false"
    if task_of(config).exact:
        yield f"{key}: the base of task.name={config.task.name} fits anywhere; leave it out"


def _logging(loaded: Loaded) -> Iterator[str]:
    wandb_mode(loaded.config)
    if not set(loaded.config.logging.artifacts) <= set(ARTIFACTS):
        yield f"{said(loaded, 'logging.artifacts')}: may list {' and '.join(ARTIFACTS)}"
