"""The configuration of one experiment: every section, and the settings that stand at the top.

Plain dataclasses without torch, so that ``--help`` answers at once. Each setting carries its help text, range, readers
and role as metadata (workbench/settings/fields.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from workbench.settings import conditions as when
from workbench.settings.data_settings import BaseConfig, DataConfig, RolloutConfig, TargetConfig
from workbench.settings.fields import NOT_NEGATIVE, SEED, section, setting
from workbench.settings.methods import METHODS
from workbench.settings.objective import ObjectiveConfig, ObjectiveSettings
from workbench.settings.oracles import OracleConfig
from workbench.settings.parameterisations import PARAMETERISATIONS
from workbench.settings.run_settings import EvalConfig, LoggingConfig, OptimConfig, TrainerConfig
from workbench.settings.tasks import TaskConfig

T = TypeVar("T")

_AUTO = ", ".join(
    f"{kind} for {' and '.join(row.name for row in METHODS.values() if row.default == kind)}"
    for kind in dict.fromkeys(row.default for row in METHODS.values())
)


@dataclass
class Settings:
    """One experiment."""

    description: str = setting("", "One line, shown in the list of experiments.", role="execution")
    method: str = setting("dinado_merge", "Training method, see the list of methods.", choices=tuple(METHODS))
    parameters: str = setting(
        "auto",
        f"""What is trained: an oracle network beside the base, adapters in it, or all its weights. `auto`: {_AUTO};
        network for all on the exact world.""",
        choices=("auto", *PARAMETERISATIONS),
    )
    sft_data: Literal["positives", "references"] = setting(
        "positives",
        "sft: imitate the rollouts that the oracle accepted, or the task's references.",
        unread=when.one_source,
    )
    seed: int = setting(0, "Seed of initialisation and batch order.", SEED, role="seed", repeats=1)
    alpha: float = setting(
        1.0, "Control strength when decoding, p * R^alpha.", NOT_NEGATIVE, role="target", agree="decoding"
    )
    runs: str = setting("runs", "Folder that holds the runs.", role="execution")
    base: BaseConfig = section(BaseConfig, role="target", agree="the base")
    task: TaskConfig = section(TaskConfig, role="target", agree="the task")
    oracle: OracleConfig = section(OracleConfig, role="target", agree="the oracle")
    data: DataConfig = section(DataConfig)
    rollouts: RolloutConfig = section(RolloutConfig)
    targets: TargetConfig = section(TargetConfig)
    objective: ObjectiveSettings = section(ObjectiveConfig)
    optim: OptimConfig = section(OptimConfig)
    trainer: TrainerConfig = section(TrainerConfig, role="execution")
    eval: EvalConfig = section(EvalConfig, role="execution")
    logging: LoggingConfig = section(LoggingConfig, role="execution")

    def own(self, kind: type[T]) -> T:
        """Return the section of a parameterisation by the class of its settings."""
        return next(value for value in vars(self).values() if isinstance(value, kind))


if TYPE_CHECKING:
    Config: TypeAlias = Settings
else:
    # The sections of parameterisations come from their table, so that each brings its settings in its own row.
    Config = dataclasses.make_dataclass(
        "Config",
        [
            ("objective", ObjectiveConfig, section(ObjectiveConfig)),
            *(
                (row.name, row.settings, section(row.settings, unread=when.untrained(row.name)))
                for row in PARAMETERISATIONS.values()
                if row.settings is not None
            ),
        ],
        bases=(Settings,),
        namespace={"__doc__": Settings.__doc__, "__module__": __name__},
    )
