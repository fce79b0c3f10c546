"""The contract of an oracle.

Axes: N texts.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinado.oracles.oracle import Oracle
from dinado.prompt import Prompt

_DATA = {"concepts": ["dog", "run"], "answer": 7, "references": ["The dogs were running."]}
PROMPTS = tuple(Prompt(str(index), text, _DATA) for index, text in enumerate(("", "Write about a dog.", "What is it?")))
TEXTS = ("", "The dogs were running home.", "no capital, no full stop", "7 3 2", "One! Two? Three", "dog", "  7  ")


@dataclass(frozen=True)
class OracleCase:
    """An oracle under test.

    Attributes:
        make: makes it anew.
        other: makes one of the same kind with another setting; None for a kind without settings.
        prompts, texts: what it judges; every text is judged as a response to one prompt.
    """

    make: Callable[[], Oracle]
    other: Callable[[], Oracle] | None = None
    prompts: Sequence[Prompt] = PROMPTS
    texts: Sequence[str] = TEXTS

    @property
    def pairs(self) -> tuple[list[Prompt], list[str]]:
        """Every text, with the prompts in turn."""
        return [self.prompts[i % len(self.prompts)] for i in range(len(self.texts))], list(self.texts)


def scores_are_probabilities(case: OracleCase) -> None:
    """Check that a score is one number in [0, 1] for each text, and so is progress."""
    prompts, texts = case.pairs
    for judge in (case.make(), case.make().checked_progress):
        scores_N = judge(prompts, texts)
        assert scores_N.shape == (len(texts),) and scores_N.dtype == torch.float32
        _assert_in_range(scores_N)
        assert judge([], []).shape == (0,)


def a_batch_is_its_texts_one_by_one(case: OracleCase) -> None:
    """Check that the scores of a batch do not depend on what else is in it, nor on what was judged before."""
    oracle, (prompts, texts) = case.make(), case.pairs
    for judge in (oracle, oracle.checked_progress):
        scores_N = judge(prompts, texts)
        alone_N = torch.cat([judge([prompt], [text]) for prompt, text in zip(prompts, texts, strict=True)])
        torch.testing.assert_close(scores_N, alone_N, rtol=0, atol=1e-5)
        torch.testing.assert_close(judge(prompts[::-1], texts[::-1]).flip(0), scores_N, rtol=0, atol=1e-5)


def a_pickled_oracle_is_the_same(case: OracleCase) -> None:
    """Check that pickling keeps scores and fingerprint."""
    oracle, (prompts, texts) = case.make(), case.pairs
    copy = pickle.loads(pickle.dumps(oracle))
    assert torch.equal(copy(prompts, texts), oracle(prompts, texts))
    assert copy.fingerprint == oracle.fingerprint


def the_fingerprint_names_the_settings(case: OracleCase) -> None:
    """Check that equal settings have equal fingerprints, other settings another one, and scoring changes none."""
    oracle = case.make()
    fingerprint = oracle.fingerprint
    assert fingerprint == case.make().fingerprint
    oracle(*case.pairs)
    assert oracle.fingerprint == fingerprint, "scoring changed an attribute; override settings()"
    assert (~oracle).fingerprint != fingerprint
    if case.other is not None:
        assert case.other().fingerprint != fingerprint, "a setting is not part of the fingerprint"


def oracles_compose(case: OracleCase) -> None:
    """Check that ``~``, ``&`` and ``|`` are 1 - a, a b and 1 - (1 - a)(1 - b)."""
    oracle, other, (prompts, texts) = case.make(), (case.other or case.make)(), case.pairs
    a_N, b_N = oracle(prompts, texts), other(prompts, texts)
    expected = ((~oracle, 1 - a_N), (oracle & other, a_N * b_N), (oracle | other, 1 - (1 - a_N) * (1 - b_N)))
    for composed, value_N in expected:
        torch.testing.assert_close(composed(prompts, texts), value_N, rtol=0, atol=1e-6)
        _assert_in_range(composed.checked_progress(prompts, texts))


def _assert_in_range(scores_N: Tensor) -> None:
    assert ((scores_N >= 0) & (scores_N <= 1)).all(), scores_N


CHECKS = (
    scores_are_probabilities,
    a_batch_is_its_texts_one_by_one,
    a_pickled_oracle_is_the_same,
    the_fingerprint_names_the_settings,
    oracles_compose,
)
