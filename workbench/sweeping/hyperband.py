"""Early stopping of trials by W&B's rule (Hyperband, Li et al., 2018, as in W&B's own controller)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dinado.errors import ConfigError
from workbench.settings.experiment_files import one_line

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Hyperband:
    """The rule of early stopping: the iterations (bands) at which trials are compared, and the share that goes on.

    An iteration is one report of the metric. Once a trial has passed a band, its best value so far must be among the
    best ``1 / eta`` of the values that all trials had there.

    Attributes:
        eta: inverse of that share, and factor between bands.
        min_iter: the first band, or None.
        max_iter: the iteration from which the bands are divided down, or None.
        s: number of bands below ``max_iter``.
    """

    eta: float = 3.0
    min_iter: int | None = None
    max_iter: int | None = None
    s: int = 0

    @classmethod
    def read(cls, body: Any) -> Hyperband:
        """Read ``early_terminate`` of a sweep file.

        Raises:
            ConfigError: the method is not Hyperband, a value is invalid, or the values give no band.
        """
        where = "early_terminate"
        if not isinstance(body, Mapping) or body.get("type") != "hyperband":
            raise ConfigError(f"{where}: give {{type: hyperband, min_iter: 3}}")
        if unknown := sorted(set(body) - {"type", "eta", "min_iter", "max_iter", "s"}):
            raise ConfigError(f"{where}: {unknown[0]}: no such key; there are type, eta, min_iter, max_iter and s")
        for key in ("min_iter", "max_iter", "s"):
            if key in body and (type(body[key]) is not int or body[key] < 1):
                raise ConfigError(f"{where}: {key}={one_line(body[key])}: give a whole number of 1 or more")
        eta = body.get("eta", 3)
        if type(eta) not in (int, float) or not 1 < eta < math.inf:
            raise ConfigError(f"{where}: eta={one_line(eta)}: give a number above 1")
        if ("min_iter" in body) == ("max_iter" in body) or ("max_iter" in body) != ("s" in body):
            raise ConfigError(f"{where}: give min_iter, or max_iter with s")
        found = cls(float(eta), body.get("min_iter"), body.get("max_iter"), body.get("s", 0))
        if not list(found.bands(2)) and found.max_iter is not None and found.max_iter < eta:
            raise ConfigError(f"{where}: max_iter={found.max_iter} is below eta={eta:g}, so that there is no band")
        return found

    def bands(self, longest: int) -> Iterator[int]:
        """Yield the iterations below ``longest`` at which trials are compared."""
        if self.max_iter is not None:
            found = [int(self.max_iter / self.eta**power) for power in range(self.s, 0, -1)]
            yield from (band for band in found if 1 <= band < longest)
            return
        band = float(self.min_iter or 1)
        while int(band) < longest:
            yield int(band)
            band *= self.eta

    def to_give_up(self, running: Iterable[K], histories: Mapping[K, Sequence[float]], maximise: bool) -> set[K]:
        """Return the running trials to stop.

        Args:
            running: trials that may be stopped.
            histories: values that every trial has reported so far, running or not.
            maximise: whether more is better.
        """
        sign = -1.0 if maximise else 1.0
        losses = {key: [sign * value for value in values] for key, values in histories.items()}
        limits = {}
        for band in self.bands(max(map(len, losses.values()), default=0)):
            there = sorted(values[band] for values in losses.values() if len(values) > band)
            limits[band] = there[int(len(there) * (1.0 / self.eta))]
        behind = set()
        for key in running:
            mine = losses.get(key, [])
            passed = [band for band in limits if band < len(mine)]
            if passed and min(mine) > limits[passed[-1]]:
                behind.add(key)
        return behind
