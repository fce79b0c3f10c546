"""Values of beginnings, against a world in which they are known in closed form, and what they are made from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinado.control.prefix_critic import PrefixCritic, others_success

BUDGET, SIZE, EOS = 8, 4, 0


def dice(num: int) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """Responses of independent uniform tokens, accepted where 1 occurs; token 0 ends them."""
    stream = np.random.default_rng(0)
    tokens, progress = [], []
    for row_T in stream.integers(0, SIZE, (num, BUDGET)):
        ends = np.flatnonzero(row_T == EOS)
        row_T = row_T[: ends[0] + 1] if len(ends) else row_T
        tokens.append(row_T)
        progress.append(np.concatenate([[0], np.cumsum(row_T == 1) > 0]).astype(np.float32))
    return tokens, np.array([row_T1[-1] for row_T1 in progress]), progress


def chance(done: bool, left: int) -> float:
    """P(1 comes before 0 in `left` draws), or 1 if it came already."""
    return 1.0 if done else 0.5 * (1 - 0.5**left)


@pytest.fixture(scope="module")
def rolled() -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
    return dice(6000)


@pytest.fixture(scope="module")
def critic(rolled: tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]) -> PrefixCritic:
    tokens, score_N, progress = rolled
    return fitted(tokens, score_N, progress, prompt_N=np.arange(len(tokens)) % 50)


def fitted(
    tokens: list[np.ndarray],
    score_N: np.ndarray,
    progress: list[np.ndarray],
    weight_N: np.ndarray | None = None,
    prompt_N: np.ndarray | None = None,
    seed: int = 0,
) -> PrefixCritic:
    weight_N = np.ones(len(tokens)) if weight_N is None else weight_N
    prompt_N = np.zeros(len(tokens), dtype=int) if prompt_N is None else prompt_N
    before = [row_T1[:-1] for row_T1 in progress]
    return PrefixCritic(before, tokens, score_N, weight_N, prompt_N, eos_ids=[EOS], max_new_tokens=BUDGET, seed=seed)


def test_values_of_beginnings_in_closed_form(critic: PrefixCritic, rolled: tuple) -> None:
    tokens, score_N, progress = rolled
    error: list[float] = []
    for row, (row_T, progress_T1) in enumerate(zip(tokens, progress, strict=True)):
        value_T = critic.before(row, progress_T1[:-1], row_T)
        assert value_T.dtype == torch.float32 and len(value_T) == len(row_T)
        error += [abs(float(value_T[t]) - chance(progress_T1[t] == 1, BUDGET - t)) for t in range(len(row_T))]
    assert np.mean(error) < 0.02 and np.max(error) < 0.15
    # What a beginning adds to the knowledge of the prompt, which is worth nothing here.
    share = score_N.mean()
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert critic.ce < critic.prompt_ce - 0.1
    assert critic.prompt_ce == pytest.approx(entropy, abs=0.1)


def test_values_of_candidates_in_closed_form(critic: PrefixCritic) -> None:
    """After tokens 2 and 1 at each of the first positions of a text without 1."""
    candidate_TK = np.tile([2, 1], (BUDGET - 1, 1))
    progress_TK = (candidate_TK == 1).astype(np.float32)
    value_TK = critic.after(0, progress_TK, candidate_TK)
    for t in range(5):  # later on few texts are left
        exact = [chance(False, BUDGET - t - 1), 1.0]
        assert value_TK[t].tolist() == pytest.approx(exact, abs=0.05)
    others_T = critic.after_others(0, np.zeros(BUDGET - 1, dtype=np.float32))
    assert others_T[:5].tolist() == pytest.approx(value_TK[:5, 0].tolist(), abs=0.05)
    assert torch.isfinite(critic.after(0, np.zeros((1, 1), dtype=np.float32), np.array([[10**6]]))).all()


def test_the_noise_is_that_of_the_verdict(critic: PrefixCritic, rolled: tuple) -> None:
    """Differences of values add up to the verdict and hardly correlate: their squares sum to its variance."""
    tokens, score_N, progress = rolled
    squares = [
        np.square(np.diff(np.append(critic.before(row, progress_T1[:-1], row_T).numpy(), score))).sum()
        for row, (row_T, progress_T1, score) in enumerate(zip(tokens, progress, score_N, strict=True))
    ]
    assert np.mean(squares) == pytest.approx(score_N.var(), rel=0.05)


def test_the_same_seed_gives_the_same_values() -> None:
    tokens, score_N, progress = dice(200)
    state = torch.random.get_rng_state()
    first, again, other = (
        fitted(tokens, score_N, progress, seed=seed).before(3, progress[3][:-1], tokens[3]) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_verdict_does_not_predict_itself() -> None:
    score_N, weight_N = np.array([1.0, 0.0, 0.0, 1.0]), np.array([1.0, 1.0, 2.0, 1.0])
    root_N = others_success(score_N, weight_N, np.array([3, 3, 3, 8]))
    prior = 2 / 5
    expected = [(0 + 2 * prior) / (3 + 2), (1 + 2 * prior) / (3 + 2), (1 + 2 * prior) / (2 + 2), prior]
    assert root_N == pytest.approx(expected)


def test_weights_count() -> None:
    """Accepted rollouts that stand for nothing leave no trace."""
    tokens, score_N, progress = dice(2000)
    critic = fitted(tokens, score_N, progress, weight_N=np.where(score_N > 0, 1e-6, 1.0))
    assert float(critic.before(0, progress[0][:-1], tokens[0])[0]) < 0.02
