"""Where the next trial comes from: a list (grid, random), or Optuna's sampler, which learns from those before."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from dinado.errors import ConfigError
from workbench.sweeping.sweep_folder import FINISHED, OVER, STOPPED_EARLY, Outcome
from workbench.sweeping.trials import Maker, Trial, check_ends


class Source(Protocol):
    """Gives trials one by one and hears what came of them."""

    def ask(self) -> Trial | None:
        """The next trial, None when there is no other for now."""

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """What a trial has come to."""

    def all(self) -> list[Trial]:
        """Every trial so far, and those of a list that are to come."""


class Listed:
    """Trials that are known beforehand."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = list(trials)
        self._left = deque(trials)

    def ask(self) -> Trial | None:
        """The next one of the list."""
        return self._left.popleft() if self._left else None

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Nothing is learned."""

    def all(self) -> list[Trial]:
        """The list."""
        return self._trials


class Bayes:
    """Optuna's TPE sampler. The study lies in the sweep's folder, where several machines may share it.

    Every parameter is a number in [0, 1] to the sampler, mapped by its quantile function, or the place of a choice.

    Args:
        maker: makes trials of what the sampler suggests.
        count: trials in all, those of earlier starts included.
        seed: of the sampler.
        path: the sweep's folder, None to keep the study in memory.

    Attributes:
        refused: suggestions that the rules refused, in a line each; the sampler hears that they failed.

    Raises:
        ConfigError: Optuna is not installed, or an end of a range is refused.
    """

    def __init__(self, maker: Maker, count: int, seed: int = 0, path: Path | None = None) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError(
                f"{maker.definition.label}: method=bayes needs Optuna: pip install -r requirements-sweep.txt"
            ) from None
        check_ends(maker)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.maker, self.count, self.seed = maker, count, seed
        self._optuna = optuna
        self._path = path
        self._study: Any = None
        self._numbers: dict[str, list[int]] = {}
        self._left: deque[tuple[int, Trial]] = deque()
        self.refused: list[str] = []

    def open(self) -> None:
        """Open the study, and take up trials that an earlier start has left."""
        optuna, definition = self._optuna, self.maker.definition
        storage = None
        if self._path is not None:
            journal = optuna.storages.journal.JournalFileBackend(str(self._path / "optuna.journal"))
            storage = optuna.storages.JournalStorage(journal)
        # A file with other ranges is another study; Optuna would refuse to mix them.
        space = [repr(definition.parameters), definition.metric, definition.maximise, self.maker.fixed]
        name = hashlib.sha256(json.dumps(space).encode()).hexdigest()[:12]
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if definition.maximise else "minimize",
            load_if_exists=True,
        )
        for suggested in self._study.get_trials(deepcopy=False):
            if suggested.state == optuna.trial.TrialState.RUNNING and (trial := self._trial(suggested)):
                self._left.append((suggested.number, trial))

    def ask(self) -> Trial | None:
        """One that was left over, or what the sampler suggests, until there are enough."""
        if self._left:
            number, trial = self._left.popleft()
            self._numbers.setdefault(trial.id, []).append(number)
            return trial
        while (known := len(self._study.get_trials(deepcopy=False))) < self.count:
            # Seeded by how many there are: a restart would draw the first ones again.
            self._study.sampler = self._optuna.samplers.TPESampler(seed=self.seed + known, constant_liar=True)
            suggested = self._study.ask(self._distributions())
            if suggestion := self._trial(suggested):
                self._numbers.setdefault(suggestion.id, []).append(suggested.number)
                return suggestion
            self._study.tell(suggested.number, state=self._optuna.trial.TrialState.FAIL)
        return None

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Let the sampler know; a trial that was interrupted stays open."""
        if outcome.status not in OVER:
            return
        states = self._optuna.trial.TrialState
        for number in self._numbers.pop(trial.id, []):
            if outcome.status == FINISHED:
                self._study.tell(number, outcome.value, skip_if_finished=True)
            else:
                state = states.PRUNED if outcome.status == STOPPED_EARLY else states.FAIL
                self._study.tell(number, state=state, skip_if_finished=True)

    def all(self) -> list[Trial]:
        """Every trial of the study."""
        found = map(self._trial, self._study.get_trials(deepcopy=False))
        return list({trial.id: trial for trial in found if trial is not None}.values())

    def _distributions(self) -> dict[str, Any]:
        kinds = self._optuna.distributions
        return {
            parameter.key: kinds.CategoricalDistribution(range(len(parameter.values)))
            if parameter.values
            else kinds.FloatDistribution(0.0, 1.0)
            for parameter in self.maker.definition.parameters
        }

    def _trial(self, suggested: Any) -> Trial | None:
        settings = {}
        if len(suggested.params) < len(self.maker.definition.parameters):
            return None  # another machine is about to fill it in
        for parameter in self.maker.definition.parameters:
            drawn = suggested.params[parameter.key]
            inside = min(max(drawn, 1e-12), 1 - 1e-12)
            settings[parameter.key] = parameter.values[drawn] if parameter.values else parameter.at(inside)
        try:
            return self.maker.make(settings)
        except ConfigError as error:
            if str(error) not in self.refused:
                self.refused.append(str(error))
            return None
