"""What may be drawn from besides the base: beams, truncated proposals with their bias named, all of it end to end."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from helpers import base_lm, plain_log_probs, prompt_tokens
from test_checkpoints import train
from test_exact_training import prepared
from test_weights import TOP, WORDS, everything

from dinado.prompt import Prompt
from dinado.rollouts.beam import beam_search

PROMPTS = [Prompt("a", "3 1 2"), Prompt("b", "4")]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", ["llama", "gpt2", "markov"])
def test_a_beam_wide_enough_finds_the_likeliest_responses(name: str, temperature: float) -> None:
    base = base_lm(name, vocab_size=5, temperature=temperature)
    found = beam_search(base, *base.encode_prompts(PROMPTS), num_beams=20, max_new_tokens=2)
    for index, prompt in enumerate(PROMPTS):
        before = prompt_tokens(base, prompt)
        exact = {}
        for first in range(5):
            for tokens in [(0,)] if first == 0 else [(first, second) for second in range(5)]:
                log_p_TV = plain_log_probs(base.model, before, tokens, temperature)
                exact[tokens] = sum(float(log_p_TV[t, token]) for t, token in enumerate(tokens))
        mine = [row for row, of in enumerate(found.prompt_of) if of == index]
        likeliest = sorted(exact, key=lambda tokens: -exact[tokens])[:20]
        assert [tuple(found.tokens[row]) for row in mine] == likeliest
        for row in mine:
            assert sum(found.log_p[row]) == pytest.approx(exact[tuple(found.tokens[row])], abs=1e-4)
            assert found.finished[row] == (found.tokens[row][-1] == 0)


def test_a_run_on_beams(tmp_path: Path) -> None:
    words = ("rollouts.source=beam", "targets.weights=likelihood", "targets.clip=0")
    outcome, _ = train(tmp_path, "nado", "beams", *words)
    assert outcome.exit_code == 0
    assert outcome.metrics["rollouts/distinct"] == 1.0, "no response comes twice"
    assert outcome.metrics["weights/max_share"] > 2 / 64, "likelier ones count more"


@pytest.mark.parametrize("weights", ["importance", "balance"])
def test_what_a_truncated_proposal_leaves_out_is_named(
    tmp_path: Path, weights: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = everything()
    support = float(world.p_N[world.log_s(TOP) > -torch.inf].sum())
    words = [
        *WORDS,
        f"data.cache={tmp_path}",
        "rollouts.per_prompt=4000",
        "rollouts.top_k=2",
        f"targets.weights={weights}",
    ]
    with caplog.at_level(logging.WARNING):
        _, data = prepared("exact_world", [*words, "trainer.progress=false"])
    assert data.summary["rollouts/support"] == pytest.approx(support, abs=0.02)
    assert f"{100 * (1 - data.summary['rollouts/support']):.0f} % of the time" in caplog.text


def test_rounds_that_draw_from_the_base_too_leave_nothing_out(tmp_path: Path) -> None:
    words = ("rollouts.top_k=2", "targets.weights=balance", "rollouts.rounds=2")
    metrics = train(tmp_path, "nado", "mixed", *words)[0].metrics
    assert "rollouts/support" not in metrics


@pytest.mark.parametrize(
    "words",
    [
        ("targets.weights=likelihood", "targets.complement=true"),
        ("targets.smoothing=pareto", "targets.weights=importance", "rollouts.temperature=1.5"),
    ],
)
def test_every_way_of_weighing_trains(tmp_path: Path, words: tuple[str, ...]) -> None:
    outcome, _ = train(tmp_path, "merge", "weighed", *words)
    assert outcome.exit_code == 0
    assert 0 < outcome.metrics["weights/ess_fraction"] <= 1
    assert ("weights/pareto_k" in outcome.metrics) == ("targets.smoothing=pareto" in words)
