"""Measure how often the printed intervals hold the truth, and how far off the estimates are on average.

    python benchmarks/estimator_coverage.py            # all populations, six minutes on one core
    python benchmarks/estimator_coverage.py --quick    # fewer evaluations
    python benchmarks/estimator_coverage.py --json     # the last line is one object

A population is 300 small Markov worlds, one a prompt, and two models of each; every distribution over their 4,096 texts
is known, and with it the true KL(q*||q), gap closed, success rate and KL(q||p). An evaluation draws P prompts and their
rollouts as a run does, and calls the estimators that a run calls. A coverage is the share of evaluations whose 95 %
interval holds the mean over the population. Differences are those of KL(q*||q) between two models, over prompts, and
those between groups of runs, over seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dinado.metrics.distance import PromptDraws, difference, distance
from dinado.metrics.intervals import (
    Interval,
    mean_interval,
    rate_interval,
    unpaired_difference,
)
from workbench.settings.config import Config

VOCABULARY, LENGTH, WORLDS = 4, 6, 300
SAMPLES = 8
MOST = Config().eval.max_rollouts
NAMES = ("kl", "gap", "base", "success", "kl_from_base", "difference")


class World(NamedTuple):
    """A prompt: its base, its q* and a model, over all texts.

    Attributes:
        rate: R, the success rate of the base.
        kl: KL(q*||q) in nats.
        cdf_of_accepted, log_ratio: cumulative q* of the accepted texts, and their log p - log q.
        other_ratio, other_kl: the same of a second model.
        cdf_of_model, score, cost: cumulative q of all texts, their verdicts, and their log q - log p.
    """

    rate: float
    kl: float
    cdf_of_accepted: np.ndarray
    log_ratio: np.ndarray
    other_ratio: np.ndarray
    other_kl: float
    cdf_of_model: np.ndarray
    score: np.ndarray
    cost: np.ndarray


class Population(NamedTuple):
    """Worlds by the strength of two required tokens' logits, and by how much of q* their models have learned."""

    name: str
    strength: tuple[float, float]
    learned: tuple[float, float]


POPULATIONS = (
    Population("success 0.01 everywhere", (-3.4, -3.4), (0.3, 0.7)),
    Population("success 0.04 everywhere", (-2.6, -2.6), (0.3, 0.7)),
    Population("success 0.1 everywhere", (-2.0, -2.0), (0.3, 0.7)),
    Population("success 0.3 everywhere", (-1.2, -1.2), (0.3, 0.7)),
    Population("success from 0.001 to 0.5", (-4.2, -0.9), (0.3, 0.7)),
    Population("a model good here and bad there", (-2.4, -1.6), (-0.2, 1.0)),
)


def build(population: Population, rng: np.random.Generator) -> list[World]:
    """Build the worlds of a population."""
    texts = np.array(list(product(range(VOCABULARY), repeat=LENGTH)))
    before = np.concatenate([np.full((len(texts), 1), VOCABULARY), texts[:, :-1]], 1)
    score = ((texts == 2).any(1) & (texts == 3).any(1)).astype(float)
    worlds = []
    for _ in range(WORLDS):
        logits = rng.normal(0, 0.6, (VOCABULARY + 1, VOCABULARY))
        logits[:, 2:] += rng.uniform(*population.strength)
        log_p = _normalised(logits)[before, texts].sum(1)
        p = np.exp(log_p)
        rate = float(p @ score)
        optimum = p * score / rate
        log_q, log_other = (
            _normalised((1 - share) * log_p + share * np.log(0.9 * optimum + 0.1 * p) + rng.normal(0, 0.5, len(texts)))
            for share in rng.uniform(*population.learned, size=2)
        )
        accepted = np.flatnonzero(score)
        target = optimum[accepted]
        kl, other_kl = (float(target @ (np.log(target) - model[accepted])) for model in (log_q, log_other))
        ratio, other = (log_p - log_q)[accepted], (log_p - log_other)[accepted]
        cost = log_q - log_p
        worlds.append(World(rate, kl, target.cumsum(), ratio, other, other_kl, np.exp(log_q).cumsum(), score, cost))
    return worlds


def evaluate(
    worlds: Sequence[World], num_prompts: int, per_prompt: int, rng: np.random.Generator
) -> dict[str, Interval]:
    """Draw the rollouts and samples of one evaluation, and return its printed intervals."""
    draws, others, rates, costs = [], [], [], []
    for index in rng.integers(0, len(worlds), num_prompts):
        world = worlds[index]
        accepted, first = int(rng.binomial(per_prompt, world.rate)), None
        if not accepted and (waited := per_prompt + int(rng.geometric(world.rate))) <= MOST:
            first = waited
        rows = _drawn(world.cdf_of_accepted, accepted or int(first is not None), rng)
        draws.append(PromptDraws(per_prompt, world.log_ratio[rows].tolist(), first, MOST))
        others.append(PromptDraws(per_prompt, world.other_ratio[rows].tolist(), first, MOST))
        samples = _drawn(world.cdf_of_model, SAMPLES, rng)
        rates.append(world.score[samples].mean())
        costs.append(world.cost[samples].mean())
    found, other = distance(draws), distance(others)
    return {
        "kl": found.kl,
        "gap": found.gap_closed,
        "base": found.base,
        "success": rate_interval(rates, SAMPLES),
        "kl_from_base": mean_interval(costs),
        "difference": difference(found.log_ratio_P, other.log_ratio_P, found.gap_P, found.known_P),
    }


def truth(worlds: Sequence[World]) -> dict[str, float]:
    """Return the population's true means."""
    kl, base = np.mean([world.kl for world in worlds]), np.mean([-np.log(world.rate) for world in worlds])
    mass = [np.diff(world.cdf_of_model, prepend=0.0) for world in worlds]
    return {
        "kl": float(kl),
        "gap": float(1 - kl / base),
        "base": float(base),
        "success": float(np.mean([q @ world.score for q, world in zip(mass, worlds, strict=True)])),
        "kl_from_base": float(np.mean([q @ world.cost for q, world in zip(mass, worlds, strict=True)])),
        "difference": float(np.mean([world.kl - world.other_kl for world in worlds])),
    }


def measure(population: Population, num_prompts: int, per_prompt: int, trials: int, seed: int) -> dict[str, float]:
    """Return the coverage of every interval, and the bias of KL(q*||q) in nats."""
    rng = np.random.default_rng([seed, num_prompts, per_prompt])
    worlds = build(population, rng)
    true = truth(worlds)
    found = [evaluate(worlds, num_prompts, per_prompt, rng) for _ in range(trials)]
    told = [one for one in found if np.isfinite(one["kl"].mean)]
    hits = {name: float(np.mean([one[name].low <= true[name] <= one[name].high for one in told])) for name in NAMES}
    bias = float(np.mean([one["kl"].mean for one in told]) - true["kl"])
    return hits | {"bias": bias, "withheld": 1 - len(told) / trials, "true kl": true["kl"], "true base": true["base"]}


def seeds_coverage(count: int, trials: int, rng: np.random.Generator) -> float:
    """Return the coverage of the difference between two groups of runs over seeds, of skewed results."""
    hits = 0
    for _ in range(trials):
        first, second = rng.gamma(4, 0.1, count), 0.3 + rng.gamma(4, 0.05, count)
        interval = unpaired_difference(first, second)
        hits += interval.low <= 0.4 - 0.5 <= interval.high
    return hits / trials


def main() -> int:
    """Simulate, and print a line for every population and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end stdout with one object")
    parser.add_argument("--quick", action="store_true", help="100 evaluations of each kind in place of 500")
    arguments = parser.parse_args()
    trials = 100 if arguments.quick else 500
    out = sys.stderr if arguments.json else sys.stdout
    lines, biases = [], []
    for number, population in enumerate(POPULATIONS):
        for num_prompts, per_prompt in product((24, 48), (8, 16)):
            line = measure(population, num_prompts, per_prompt, trials, number)
            lines.append(line)
            biases.append(abs(line["bias"]))
            shown = " ".join(f"{name} {line[name]:.3f}" for name in NAMES)
            print(
                f"{population.name}, P {num_prompts}, K {per_prompt}: {shown}; bias {line['bias']:+.3f} of "
                f"{line['true kl']:.2f} (base {line['true base']:.2f}), withheld {line['withheld']:.2f}",
                file=out,
                flush=True,
            )
    rng = np.random.default_rng(0)
    over_seeds = [seeds_coverage(count, 20 * trials, rng) for count in (3, 5)]
    print(f"difference over 3 and 5 seeds: {over_seeds[0]:.3f} {over_seeds[1]:.3f}", file=out)
    lowest = {name: min(line[name] for line in lines) for name in NAMES}
    result = {f"coverage_{name}_min": value for name, value in lowest.items()}
    result |= {"coverage_difference_min": min(lowest["difference"], *over_seeds), "bias_kl_max": max(biases)}
    print(json.dumps({key: round(value, 4) for key, value in result.items()}))
    return 0


def _normalised(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _drawn(cdf: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw indices from a cumulative distribution."""
    return np.minimum(np.searchsorted(cdf, rng.random(count)), len(cdf) - 1)


if __name__ == "__main__":
    sys.exit(main())
