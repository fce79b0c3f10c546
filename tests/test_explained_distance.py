"""The diagnostics of a distance: best-of-n of the base, and which tokens the nats come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import Command
from scipy import stats

import evaluate
import train
from dinado.evaluation.best_of_n import frontier, kl_at
from dinado.evaluation.nats_by_token import END, OTHER, PROGRESS, Decomposition, position, rows
from dinado.oracles import LexicalOracle
from dinado.prompt import Prompt


def test_the_frontier_is_unbiased_up_to_k_and_close_beyond() -> None:
    rng = np.random.default_rng(0)
    rates = rng.beta(1.0, 6.0, size=4000)
    points = frontier([(int(rng.binomial(8, rate)), 8) for rate in rates], (1, 2, 4, 8, 16, 64))
    for point in points:
        assert point.success == pytest.approx(1 - np.mean((1 - rates) ** point.n), abs=0.02), point.n
        assert point.kl_from_base == pytest.approx(math.log(point.n) - (point.n - 1) / point.n)


def test_the_bound_is_that_of_best_of_n() -> None:
    # Scores without ties: the best of n has density n F^(n-1), whose divergence from the base is the bound itself.
    n, draws = 5, stats.uniform.rvs(size=(200_000, 5), random_state=0).max(1)
    assert np.mean(np.log(n * draws ** (n - 1))) == pytest.approx(frontier([(1, 4)], (n,))[0].kl_from_base, abs=0.01)


def test_the_frontier_is_read_between_its_points() -> None:
    points = frontier([(1, 4), (0, 4)], (1, 2))
    assert kl_at(points, points[0].success) == 0 and math.isnan(kl_at(points, 0.99)) and math.isnan(kl_at([], 0.1))
    middle = (points[0].success + points[1].success) / 2
    assert kl_at(points, middle) == pytest.approx(points[1].kl_from_base / 2)


def test_nats_by_kind_and_position() -> None:
    found = Decomposition(LexicalOracle(), eos_ids=[0])
    prompt = Prompt("p", "Say dog.", {"concepts": ["dog"]})
    found.add(prompt, [5, 6, 0], ["", "a", "a dog", "a dog"], np.array([-0.5, -2.0, 0.25]), 1.0)
    found.add(prompt, [5, 0], ["", "a", "a"], np.array([0.5, 0.75]), 1.0)
    assert found.by_kind.per_text(PROGRESS) == (0.5, -1.0)
    assert found.by_kind.per_text(END) == (1.0, 0.5)
    assert found.by_kind.per_text(OTHER) == (1.0, 0.0)
    assert found.by_position.per_text("0-1") == (2.0, (-0.5 - 2.0 + 0.5 + 0.75) / 2)
    table = rows(found, found)
    assert [row["part"] for row in table] == [END, PROGRESS, OTHER, "tokens 0-1", "tokens 2-3"]
    for part in (table[:3], table[3:]):
        assert sum(float(row["KL(q||p)"]) for row in part) == pytest.approx(-0.5)


@pytest.mark.parametrize("index, name", [(0, "0-1"), (3, "2-3"), (7, "4-7"), (40, "32-63"), (5000, "from 1024")])
def test_positions(index: int, name: str) -> None:
    assert position(index) == name


def sums(table: Sequence[dict[str, float]], name: str) -> tuple[float, float]:
    kinds = [row for row in table if not str(row["part"]).startswith("tokens ") or "progress" in str(row["part"])]
    places = [row for row in table if row not in kinds]
    return sum(row[name] for row in kinds), sum(row[name] for row in places)


def test_a_run_explains_its_distance(tmp_path: Path, command: Command) -> None:
    words = ["exact_world", f"data.cache={tmp_path}/cache", f"runs={tmp_path}/runs", "optim.steps=20"]
    words += ["rollouts.per_prompt=400", "eval.rollouts_per_prompt=300", "eval.samples_per_prompt=300"]
    run = command(train, *words, "trainer.accelerator=cpu", "--json").json["run_dir"]
    found = command(evaluate, run, "--where", "--json")
    assert found.code == 0, found.err
    table = found.json["where"]
    by_kind, by_position = sums(table, "KL(q||p)")
    assert by_kind == pytest.approx(by_position) and by_kind == pytest.approx(found.json["val/kl_from_base"], abs=1e-3)
    by_kind, by_position = sums(table, "KL(q*||q) - KL(q*||p)")
    assert by_kind == pytest.approx(by_position) and by_kind < 0
    assert "tokens that make progress" in found.err
    refused = command(evaluate, run, "--where", "alpha=1.5")
    assert refused.code == 2 and "alpha=1.5 is another" in refused.err
    assert command(evaluate, "base", "exact_world", "--where").code == 2
