"""Restoring of bases, trained methods and exact worlds from settings and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dinado.bases.catalogue import resolve_base
from dinado.bases.causal import BaseLM
from dinado.bases.frozen_date import freeze_date
from dinado.bases.markov import build_markov
from dinado.bases.tiny_gpt2 import build_tiny_gpt2
from dinado.errors import ConfigError
from dinado.exact import EnumeratedWorld, ExactWorld, MarkovWorld
from dinado.oracles.tokens import token_dfa
from dinado.parameters.parameterisation import CannotFold
from engine.checkpoints import read_checkpoint
from lightning_modules.build_method import build_method
from lightning_modules.rollout_method import RolloutMethod, check_checkpoint
from workbench.run_folder import RunFolder, find_run
from workbench.settings.config import Config
from workbench.settings.derived import task_of
from workbench.settings.loader import from_run_folder

ROUNDING = 1e-9
"""A sum over all texts may fall this short of 1."""


def build_base(config: Config, moment: datetime | None = None) -> BaseLM:
    """Build the frozen base of a configuration: that of an exact world, an earlier run, or a Hugging Face model.

    Args:
        moment: the date that its chat template sees, that of the run; None for now.
    """
    task, settings = config.task, config.base
    if task.name == "exact_world":
        model, tokenizer = build_markov(task.vocab_size, task.seed, task.required, task.rarity)
        return BaseLM(model, tokenizer, temperature=settings.temperature, name="markov")
    if task.name == "exact_gpt2":
        model, tokenizer = build_tiny_gpt2(task.vocab_size, task.seed)
        return BaseLM(model, tokenizer, temperature=settings.temperature, name="tiny-gpt2")
    if settings.run is not None:
        return base_of_run(settings.run, config)
    base = BaseLM.load(
        resolve_base(settings.name, Path(config.data.cache)),
        revision=settings.revision,
        dtype=settings.dtype,
        name=settings.name,
        temperature=settings.temperature,
        chat_template=settings.chat_template,
        system_prompt=settings.system_prompt,
    )
    freeze_date(base.tokenizer, moment or datetime.now())
    return base


def base_of_run(run: str, config: Config) -> BaseLM:
    """Restore an earlier run's policy as a plain model with folded adapters, its prompt format and its temperature.

    Raises:
        ConfigError: the parameterisation of that run cannot be folded into the base.
    """
    method = restore_method(run)
    tokenizer = method.base.tokenizer
    try:
        model = method.scores.fold()
    except CannotFold as why:
        raise ConfigError(f"base.run={run}, method={method.config.method}: {why}") from None
    settings = method.config.base
    return BaseLM(
        model,
        tokenizer,
        # The policy was trained as softmax(logits / its temperature). A setting other than 1 replaces that temperature.
        temperature=config.base.temperature if config.base.temperature != 1.0 else settings.temperature,
        chat_template=settings.chat_template,
        system_prompt=settings.system_prompt,
        name=f"run {Path(run).name}",
    )


def restore_method(
    run: str | Path | RunFolder, base: BaseLM | None = None, overrides: Sequence[str] = ()
) -> RolloutMethod:
    """Restore the trained method of a run, with the weights that it ended with or those that ``run`` names.

    Args:
        base: the run's base, if it has been loaded already.
        overrides: settings to change, such as the place of a base that has moved.

    Raises:
        CheckpointError: there is no such run, no checkpoint yet, or the checkpoint does not fit.
    """
    folder = run if isinstance(run, RunFolder) else find_run(run)
    config = from_run_folder(folder.path, overrides).config
    return load_method(config, base or build_base(config, folder.started()), read_checkpoint(folder.trained))


def load_method(config: Config, base: BaseLM, checkpoint: dict[str, Any]) -> RolloutMethod:
    """Build a method around a base and load its trained weights.

    Raises:
        CheckpointError: the checkpoint does not fit.
    """
    method = build_method(config, base)
    check_and_load(method, checkpoint)
    return method.eval()


def check_and_load(method: RolloutMethod, checkpoint: dict[str, Any]) -> None:
    """Load trained parameters, and refuse a checkpoint that does not fit exactly."""
    check_checkpoint(method, checkpoint)
    method.load_state_dict(checkpoint["state_dict"], strict=False)


def build_world(config: Config, base: BaseLM) -> ExactWorld | None:
    """Build the exact world of an exact task, None for any other task.

    Raises:
        ConfigError: the oracle accepts all texts or none.
    """
    task = config.task
    if not task_of(config).exact:
        return None
    dfa = token_dfa(task.vocab_size, task.required, task.avoided, task.ends_with)
    kind = MarkovWorld if task.name == "exact_world" else EnumeratedWorld
    world = kind.from_model(base.model, task.length, dfa, base.temperature)
    if not 0 < world.success_rate < 1 - ROUNDING:
        raise ConfigError(
            f"task.required, task.avoided and task.ends_with accept a share of {world.success_rate:g} of all texts of "
            f"task.length={task.length}; there is nothing to learn"
        )
    return world
