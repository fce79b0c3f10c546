"""Restoring of one run, or of several on one base, to decode with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.tasks import Task, build_task
from dinado.bases.twins import twin
from dinado.control.controlled_lm import ControlledLM
from dinado.errors import ConfigError
from dinado.parameters.composed import Composed
from engine.checkpoints import read_checkpoint
from engine.devices import device_of
from engine.restoring import build_base, load_method
from lightning_modules.rollout_method import RolloutMethod
from workbench.run_folder import RunFolder, find_run
from workbench.settings import schema
from workbench.settings.config import Config
from workbench.settings.loader import from_run_folder
from workbench.settings.places import started_in

PROMPT_FORMAT = ("base.temperature", "base.chat_template", "base.system_prompt")


@dataclass(frozen=True)
class Restored:
    """Trained runs, ready to decode together.

    Attributes:
        folders, methods: the runs.
        model: what they decode with, p times the product of their R^alpha.
    """

    folders: Sequence[RunFolder]
    methods: list[RolloutMethod]
    model: ControlledLM

    @property
    def max_new_tokens(self) -> int:
        """The smallest of the runs' budgets: no run was trained on longer texts than its own."""
        return min(method.config.rollouts.max_new_tokens for method in self.methods)

    @property
    def truncated(self) -> str:
        """The rule for texts that the budget cuts off: they are judged only if every run judges them."""
        rules = [method.config.rollouts.truncated for method in self.methods]
        return next((rule for rule in rules if rule != "score"), "score")

    def tasks(self) -> list[Task]:
        """Build the runs' tasks, whose oracles judge together.

        Raises:
            ConfigError: two oracles are different files of one module name, of which Python imports one.
        """
        self._check_modules()
        for folder in self.folders:
            folder.make_importable()
        return [build_task(method.config) for method in self.methods]

    def _check_modules(self) -> None:
        first: dict[str, tuple[RunFolder, bytes]] = {}
        for folder, method in zip(self.folders, self.methods, strict=True):
            module = (method.config.oracle.function or "").partition(":")[0]
            file = (started_in(folder.path) or Path()) / f"{module.replace('.', '/')}.py"
            if not module or not file.is_file():
                continue
            other, content = first.setdefault(module, (folder, file.read_bytes()))
            if content != file.read_bytes():
                raise ConfigError(
                    f"oracle.function: {other.path} and {folder.path} have different modules of one name, {module}; "
                    "rename one of the files and set oracle.function in its run's config.yaml"
                )


def restore_controlled(
    runs: Sequence[str | Path | RunFolder], overrides: Sequence[str] = (), alphas: Sequence[float] | None = None
) -> Restored:
    """Restore runs to decode together, on their device, with one copy of the base's weights.

    Args:
        overrides: settings to change in all of them, such as the place of a base that has moved.
        alphas: the strength of each run, or one for all; None takes each run's own.

    Raises:
        CheckpointError: there is no such run, no checkpoint yet, or the checkpoint does not fit.
        ConfigError: the runs' bases, temperatures or prompt formats differ.
    """
    folders = [run if isinstance(run, RunFolder) else find_run(run) for run in runs]
    configs = [from_run_folder(folder.path, overrides).config for folder in folders]
    base = build_base(configs[0], folders[0].started())
    methods: list[RolloutMethod] = []
    for folder, config in zip(folders, configs, strict=True):
        checkpoint = read_checkpoint(folder.trained)
        if methods and checkpoint.get("base_fingerprint") != base.fingerprint:
            raise _different(folders[0], configs[0], folder, config)
        # Each gets modules of its own, because adapters are injected into them.
        methods.append(load_method(config, twin(base) if len(folders) > 1 else base, checkpoint))
    device = device_of(configs[0].trainer)
    for method in methods:
        method.to(device)
    own = [method.config.alpha for method in methods] if alphas is None else list(alphas)
    if len(methods) == 1:
        return Restored(folders, methods, methods[0].controlled(own[0]))
    own = own * len(methods) if len(own) == 1 else own
    composed = Composed([method.scores for method in methods], own)
    return Restored(folders, methods, ControlledLM(composed))


def _different(one: RunFolder, its: Config, other: RunFolder, their: Config) -> ConfigError:
    """Return the error of two runs that were not trained on the same base."""
    pairs = [(key, schema.get(its, key), schema.get(their, key)) for key in PROMPT_FORMAT]
    found = [
        f"{key} is {value} in the first and {theirs} in the second" for key, value, theirs in pairs if value != theirs
    ]
    reason = found[0] if found else "their models or tokenizers differ"
    return ConfigError(
        f"{one.path} and {other.path} were not trained on the same base: {reason}; runs that decode together share the "
        "base, its temperature and its prompt format"
    )
