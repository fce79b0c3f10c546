"""Distance to q* from held-out rollouts of the base: unbiased, and with intervals over prompts.

Draw K rollouts of a prompt; where the oracle accepts none of them, go on to the first accepted one, or to M draws. With
the harmonic numbers H_m, n accepted rollouts among the K and the first of all accepted ones at draw N,

    G(c) = H_K - H_n  if n > 0,  else  H_{N-1}        has the expectation -log R(c)        (inverse binomial sampling)
    D(c) = mean of log p - log q over the accepted    has the expectation E_{q*}[log p - log q]
    KL(q*||q) = mean over prompts of D + G            KL(q*||p) = mean of G
    gap closed = 1 - KL(q*||q) / KL(q*||p) = -sum D / sum G

while -log of the observed share has none where the share may be 0. A fractional verdict C accepts with probability C.
Our estimator: Rao-Blackwell applied to the waiting time of inverse binomial sampling. It imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from dinado.metrics.intervals import Interval, bootstrap_interval, mean_interval

RESOLVED = 0.5
"""Share of the prompts that need an accepted rollout; below it the distance is withheld."""


class PromptDraws(NamedTuple):
    """The held-out rollouts of one prompt.

    Attributes:
        drawn: K, the number of rollouts that every prompt has.
        log_ratios: log p - log q of the accepted ones among them, in nats; where there is none, of the first accepted
            one after them; empty if no draw was accepted.
        first: the draw N of that later one, counted from 1; None where one of the K, or none at all, was accepted.
        most: M, the largest number of draws.
    """

    drawn: int
    log_ratios: Sequence[float]
    first: int | None
    most: int

    @property
    def gap(self) -> float:
        """G, the estimate of -log R(c); without an accepted rollout H_M, which is too small."""
        if self.first is not None:
            return harmonic(self.first - 1)
        if not len(self.log_ratios):
            return harmonic(max(self.drawn, self.most))
        return harmonic(self.drawn) - harmonic(len(self.log_ratios))


class Distance(NamedTuple):
    """The distance of a model to q*, in nats a response.

    Attributes:
        kl: KL(q*||q); NaN where it is withheld.
        gap_closed: its share of KL(q*||p) that is closed.
        base: KL(q*||p), the distance of the base.
        unresolved: number of prompts without an accepted rollout.
        wanted: where the distance is withheld, the number of draws at which most prompts would have one; else None.
        log_ratio_P, gap_P: D and G of each prompt, of unresolved prompts as estimated; empty where the distance is
            withheld.
        known_P: 1 for prompts with an accepted rollout, 0 for unresolved ones.
    """

    kl: Interval
    gap_closed: Interval
    base: Interval
    unresolved: int
    wanted: int | None
    log_ratio_P: np.ndarray
    gap_P: np.ndarray
    known_P: np.ndarray


_UNKNOWN = Interval(math.nan, math.nan, math.nan)


def harmonic(number: int) -> float:
    """Compute H_m = 1 + 1/2 + ... + 1/m; H_0 is 0."""
    return float(np.sum(1.0 / np.arange(1, number + 1)))


def distance(prompts: Sequence[PromptDraws]) -> Distance:
    """Estimate the distance to q* from the held-out rollouts of all prompts.

    A prompt without an accepted rollout counts with H_M, and with the others' ratio of D to G. Where more than half of
    the prompts are such, or all but one, the numbers are withheld.
    """
    gap_P = np.array([prompt.gap for prompt in prompts])
    known_P = np.array([float(len(prompt.log_ratios) > 0) for prompt in prompts])
    log_ratio_P = np.array([np.mean(prompt.log_ratios) if len(prompt.log_ratios) else 0.0 for prompt in prompts])
    known, unresolved = int(known_P.sum()), int((known_P == 0).sum())
    if not len(prompts) or known_P.mean() < RESOLVED or known < min(2, len(prompts)):
        return Distance(_UNKNOWN, _UNKNOWN, _UNKNOWN, unresolved, _wanted(prompts), *[np.empty(0)] * 3)
    if len(prompts) == 1:
        return _of_one(prompts[0], float(log_ratio_P[0]))
    if unresolved:
        gap_P[known_P == 0] = _unresolved_gap(prompts)
    log_ratio_P = _filled(log_ratio_P, gap_P, known_P)
    data = (log_ratio_P, gap_P, known_P)
    kl = _mean(log_ratio_P, gap_P, known_P, plus=gap_P)
    closed = bootstrap_interval(data, lambda d, g, k, axis=-1: -_filled(d, g, k).sum(axis) / g.sum(axis))
    return Distance(kl, closed, mean_interval(gap_P), unresolved, None, log_ratio_P, gap_P, known_P)


def difference(log_ratio_P: np.ndarray, other_P: np.ndarray, gap_P: np.ndarray, known_P: np.ndarray) -> Interval:
    """Compute KL(q*||q) of one model minus that of another on the same held-out rollouts; the success rate cancels.

    Args:
        log_ratio_P, other_P, gap_P, known_P: D of both, and what they share (:class:`Distance`).
    """
    return _mean(log_ratio_P - other_P, gap_P, known_P, plus=np.zeros_like(gap_P))


def _mean(log_ratio_P: np.ndarray, gap_P: np.ndarray, known_P: np.ndarray, plus: np.ndarray) -> Interval:
    """Compute the mean over prompts of D and another number with its interval."""
    if known_P.all():
        return mean_interval(log_ratio_P + plus)
    # What is filled in depends on the other prompts, so prompts are resampled and filled in anew.
    data = (log_ratio_P, gap_P, known_P, plus)
    return bootstrap_interval(data, lambda d, g, k, more, axis=-1: (_filled(d, g, k) + more).mean(axis))


def _of_one(prompt: PromptDraws, log_ratio: float) -> Distance:
    """Estimate the distance of a single prompt, with intervals over its rollouts."""
    accepted, gap = len(prompt.log_ratios), prompt.gap
    kl, base = Interval(log_ratio + gap, math.nan, math.nan), Interval(gap, math.nan, math.nan)
    if accepted > 1:
        of_gap = float(np.sum(1.0 / np.arange(accepted + 1, prompt.drawn + 1) ** 2))
        of_ratio = float(np.var(prompt.log_ratios, ddof=1)) / accepted
        wide = float(stats.t.ppf(0.975, accepted - 1))
        half = wide * math.sqrt(of_gap)
        base = Interval(gap, gap - half, gap + half)
        half = wide * math.sqrt(of_gap + of_ratio)
        kl = Interval(kl.mean, kl.mean - half, kl.mean + half)
    closed = -log_ratio / gap if gap > 0 else math.nan
    return Distance(
        kl, Interval(closed, math.nan, math.nan), base, 0, None, np.array([log_ratio]), np.array([gap]), np.ones(1)
    )


def _filled(log_ratio_P: np.ndarray, gap_P: np.ndarray, known_P: np.ndarray) -> np.ndarray:
    """Predict D of unresolved prompts from their G, by least squares over the others; ``[..., P]``."""
    count = np.maximum(known_P.sum(-1, keepdims=True), 1)
    mean_g, mean_d = ((known_P * one).sum(-1, keepdims=True) / count for one in (gap_P, log_ratio_P))
    spread = (known_P * (gap_P - mean_g) ** 2).sum(-1, keepdims=True)
    slope = (known_P * (gap_P - mean_g) * (log_ratio_P - mean_d)).sum(-1, keepdims=True) / np.maximum(spread, 1e-9)
    return np.where(known_P > 0, log_ratio_P, mean_d + slope * (gap_P - mean_g))


def fitted_beta(accepted_P: np.ndarray, drawn_P: np.ndarray) -> tuple[float, float]:
    """Fit the beta distribution of success rates over prompts to accepted and drawn rollouts of each; return a and b.

    The prior on both, log-normal about 1 with two e-folds of spread, matters for few prompts alone.
    """

    def loss(logs: np.ndarray) -> float:
        a, b = np.exp(logs)
        fit = special.betaln(a + accepted_P, b + drawn_P - accepted_P) - special.betaln(a, b)
        return float(-fit.sum() + (logs**2).sum() / 8)

    a, b = np.exp(optimize.minimize(loss, np.array([0.0, 1.0]), method="Nelder-Mead").x)
    return float(a), float(b)


def _unresolved_gap(prompts: Sequence[PromptDraws]) -> float:
    """Estimate E[-log R | no draw accepted], with the success rates of prompts beta-distributed."""
    accepted, drawn = [], []
    for prompt in prompts:
        accepted.append(len(prompt.log_ratios))
        known = prompt.first or (prompt.drawn if len(prompt.log_ratios) else max(prompt.drawn, prompt.most))
        drawn.append(known)
    a, b = fitted_beta(np.array(accepted, dtype=float), np.array(drawn, dtype=float))
    most = max(max(prompt.drawn, prompt.most) for prompt in prompts)
    return float(special.digamma(a + b + most) - special.digamma(a))


def _wanted(prompts: Sequence[PromptDraws]) -> int:
    """Return the number of draws after which nine prompts in ten would have an accepted one."""
    accepted = sum(len(prompt.log_ratios) for prompt in prompts)
    drawn = sum(
        prompt.first or (prompt.drawn if len(prompt.log_ratios) else max(prompt.drawn, prompt.most))
        for prompt in prompts
    )
    rate = max(accepted, 1) / max(drawn, 1)
    return math.ceil(math.log(10) / -math.log1p(-min(rate, 0.9)))
