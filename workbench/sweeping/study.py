"""Sources of trials: a list (grid, random), or Optuna's sampler, which learns from earlier trials."""

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
    """The interface of a source: it gives trials one by one and receives their outcomes."""

    def ask(self) -> Trial | None:
        """Return the next trial, None when there is none at present."""

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Receive the outcome of a trial."""

    def all(self) -> list[Trial]:
        """Return every trial so far, and the coming trials of a list."""


class Listed:
    """A source with a fixed list of trials."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = list(trials)
        self._left = deque(trials)

    def ask(self) -> Trial | None:
        """Return the next trial of the list."""
        return self._left.popleft() if self._left else None

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Ignore the outcome."""

    def all(self) -> list[Trial]:
        """Return the list."""
        return self._trials


class Bayes:
    """Optuna's TPE sampler; its study is a file in the sweep's folder, which several machines may share.

    The sampler sees every parameter as a number in [0, 1], which the quantile function maps to a value, or as the index
    of a choice.

    Args:
        maker: turns suggestions of the sampler into trials.
        count: number of trials, including those of earlier starts.
        seed: seed of the sampler.
        path: the sweep's folder, None to keep the study in memory.

    Attributes:
        refused: suggestions that the rules refused, one line each; the sampler gets them back as failed.

    Raises:
        ConfigError: Optuna is not installed, or the rules refuse an end of a range.
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
        """Open the study, and queue the unfinished trials of an earlier start."""
        optuna, definition = self._optuna, self.maker.definition
        storage = None
        if self._path is not None:
            journal = optuna.storages.journal.JournalFileBackend(str(self._path / "optuna.journal"))
            storage = optuna.storages.JournalStorage(journal)
        # Other ranges get another study, because Optuna refuses to mix them.
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
        """Return an unfinished trial of an earlier start, else a suggestion of the sampler, up to ``count`` in all."""
        if self._left:
            number, trial = self._left.popleft()
            self._numbers.setdefault(trial.id, []).append(number)
            return trial
        while (known := len(self._study.get_trials(deepcopy=False))) < self.count:
            # The seed depends on the number of trials, so that a restart does not repeat the first draws.
            self._study.sampler = self._optuna.samplers.TPESampler(seed=self.seed + known, constant_liar=True)
            suggested = self._study.ask(self._distributions())
            if suggestion := self._trial(suggested):
                self._numbers.setdefault(suggestion.id, []).append(suggested.number)
                return suggestion
            self._study.tell(suggested.number, state=self._optuna.trial.TrialState.FAIL)
        return None

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Report the outcome to the sampler; an interrupted trial stays open."""
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
        """Return every trial of the study."""
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
            return None  # another machine has not drawn all of its parameters yet
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
