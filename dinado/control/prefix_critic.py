"""A critic that estimates the value R(c, y_<=t) of a prefix from a few features, and so cannot memorise texts.

Success depends mostly on the oracle's progress on the prefix, on the budget that is left, and on whether the text is
about to end. A network of these features alone learns from every prefix of every rollout and has very little noise,
whereas one that reads hidden states has as many parameters as there are verdicts.
Axes: N rollouts, T tokens of one of them, K candidates, M prefixes of all rollouts, F features (facts).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinado.seeding import derive_seed

WIDTH, STEPS, BATCH, RATE = 48, 1500, 2048, 1e-2
_PRIOR_STRENGTH = 2.0
_DONE = 1 - 1e-6


class PrefixCritic:
    """A small network, fitted by logistic regression of the verdict on the features of every prefix.

    Args:
        progress: oracle progress of each rollout's first 0, ..., T - 1 tokens, ``[T]`` each.
        tokens: token ids of each rollout, end of sequence included, ``[T]`` each.
        score_N, weight_N, prompt_index_N: verdict, importance weight and prompt of each rollout.
        max_new_tokens: the budget of a response.

    Attributes:
        ce: cross entropy of the verdicts given the prefixes, in nats per prefix.
        prompt_ce: the same given only the success rate of the prompt's other rollouts.
    """

    def __init__(
        self,
        progress: Sequence[np.ndarray],
        tokens: Sequence[np.ndarray],
        score_N: np.ndarray,
        weight_N: np.ndarray,
        prompt_index_N: np.ndarray,
        *,
        eos_ids: Sequence[int],
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self._max_new_tokens = max_new_tokens
        self._ending_V = _ending_shares(tokens, eos_ids)
        self._root_N = others_success(score_N, weight_N, prompt_index_N)
        self._success = float(np.average(score_N, weights=weight_N).clip(1e-4, 1 - 1e-4))
        length_N = torch.tensor([len(row_T) for row_T in tokens])
        facts_MF = torch.from_numpy(
            np.concatenate(
                [
                    self._facts(progress_T, self._ending_before(tokens_T), np.arange(len(progress_T)), root)
                    for progress_T, tokens_T, root in zip(progress, tokens, self._root_N, strict=True)
                ]
            )
        )
        score_M, weight_M, root_M = (
            torch.from_numpy(values_N.astype(np.float32)).repeat_interleave(length_N)
            for values_N in (score_N, weight_N, self._root_N)
        )
        self._network = _fit(facts_MF, score_M, weight_M, seed)
        self.ce = _ce(self._network(facts_MF)[:, 0], score_M, weight_M)
        self.prompt_ce = _ce(torch.logit(root_M), score_M, weight_M)

    def before(self, row: int, progress_T: np.ndarray, tokens_T: np.ndarray) -> Tensor:
        """Return R of a rollout's first 0, ..., T - 1 tokens, ``[T]``."""
        return self._value(progress_T, self._ending_before(tokens_T), np.arange(len(progress_T)), row)

    def after(self, row: int, progress_TK: np.ndarray, candidate_TK: np.ndarray) -> Tensor:
        """Return R after a rollout's first t tokens and one of K candidates that leaves it open, ``[T, K]``."""
        used_TK = np.arange(1, len(progress_TK) + 1)[:, None].repeat(progress_TK.shape[1], 1)
        ending_TK = self._ending_V[np.minimum(candidate_TK, len(self._ending_V) - 1)]
        return self._value(progress_TK, ending_TK, used_TK, row)

    def after_others(self, row: int, progress_T: np.ndarray) -> Tensor:
        """Return R after any other token, which makes no progress and ends nothing, ``[T]``."""
        return self._value(progress_T, np.zeros(len(progress_T)), np.arange(1, len(progress_T) + 1), row)

    def of_prefixes(self, progress_N: np.ndarray, last_N: np.ndarray, used_N: np.ndarray) -> Tensor:
        """Return R of unfinished responses to prompts without rollouts of their own, ``[N]``.

        Args:
            progress_N: oracle progress of each response.
            last_N: its last token.
            used_N: its number of tokens, at least 1.
        """
        ending_N = self._ending_V[np.minimum(last_N, len(self._ending_V) - 1)]
        facts_NF = torch.from_numpy(self._facts(progress_N, ending_N, used_N, self._success))
        with torch.no_grad():
            return self._network(facts_NF)[..., 0].sigmoid()

    def _ending_before(self, tokens_T: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], self._ending_V[tokens_T[:-1]]])

    def _value(self, progress: np.ndarray, ending: np.ndarray, used: np.ndarray, row: int) -> Tensor:
        facts = self._facts(progress, ending, used, self._root_N[row])
        return self._network(torch.from_numpy(facts))[..., 0].sigmoid()

    def _facts(self, progress: np.ndarray, ending: np.ndarray, used: np.ndarray, root: float) -> np.ndarray:
        """Return the features, float32 ``[..., F]``, all of about unit size.

        Args:
            ending: how often an end of sequence follows the last token, as a share.
            used: number of budget tokens used.
        """
        left = self._max_new_tokens - used
        done = progress >= _DONE
        log_odds = np.full(progress.shape, np.log(root / (1 - root)) / 2)
        facts = [progress, done, ending, progress * ending, done * ending, log_odds]
        return np.stack([*facts, left / self._max_new_tokens, np.log1p(left) / 3], -1).astype(np.float32)


def others_success(score_N: np.ndarray, weight_N: np.ndarray, prompt_index_N: np.ndarray) -> np.ndarray:
    """Estimate R(c) of each rollout from its prompt's other rollouts, smoothed towards the overall mean.

    No verdict thus predicts itself.
    """
    prior = float(np.average(score_N, weights=weight_N))
    _, prompt_N = np.unique(prompt_index_N, return_inverse=True)
    accepted_N = np.bincount(prompt_N, weight_N * score_N)[prompt_N] - weight_N * score_N
    all_N = np.bincount(prompt_N, weight_N)[prompt_N] - weight_N
    root_N = (accepted_N + _PRIOR_STRENGTH * prior) / (all_N + _PRIOR_STRENGTH)
    return root_N.clip(1e-4, 1 - 1e-4)


def _ending_shares(tokens: Sequence[np.ndarray], eos_ids: Sequence[int]) -> np.ndarray:
    """Return how often the end of sequence follows each token, as a share; one extra entry for unseen tokens."""
    before = np.concatenate([row_T[:-1] for row_T in tokens])
    ends = np.isin(np.concatenate([row_T[1:] for row_T in tokens]), list(eos_ids)).astype(float)
    size = int(max(row_T.max() for row_T in tokens)) + 2
    mean = float(ends.mean()) if len(ends) else 0.0
    return (np.bincount(before, ends, size) + mean) / (np.bincount(before, minlength=size) + 1)


def _fit(facts_MF: Tensor, score_M: Tensor, weight_M: Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "prefix values"))
        network = nn.Sequential(
            nn.Linear(facts_MF.shape[1], WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)
        )
        optimizer = torch.optim.AdamW(network.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
        for _ in range(STEPS):
            rows = torch.randint(len(facts_MF), (min(BATCH, len(facts_MF)),))
            loss = F.binary_cross_entropy_with_logits(network(facts_MF[rows])[:, 0], score_M[rows], weight_M[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.requires_grad_(False)


def _ce(logit_M: Tensor, score_M: Tensor, weight_M: Tensor) -> float:
    return float(F.binary_cross_entropy_with_logits(logit_M, score_M, weight_M, reduction="sum") / weight_M.sum())
