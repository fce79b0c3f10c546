"""What looking ahead found, kept with the rollouts: collected once, for the texts it is about; damage is found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from store_case import Contains, make_spec

from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.errors import OracleError, StoreError
from dinado.prompt import Prompt
from dinado.rollouts.collect import collect
from dinado.rollouts.continuations import likeliest
from dinado.rollouts.rollout_store import RolloutStore

K = 3


class HowOften(Contains):
    """Progress is the number of wanted words, up to three, in thirds."""

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        pairs = zip(prompts, texts, strict=True)
        return [min(3, text.split().count(prompt.data["wanted"])) / 3 for prompt, text in pairs]


class Fails(HowOften):
    """Cannot say for one prompt."""

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        found = zip(prompts, super().progress(prompts, texts), strict=True)
        return [float("nan") if prompt.id == "p4" else value for prompt, value in found]


def store_of(cache: Path, base: BaseLM, candidates: int = K, truncated: str = "fail") -> RolloutStore:
    return RolloutStore(cache, make_spec(base), HowOften().fingerprint, truncated, candidates=candidates)  # type: ignore[arg-type]


def count(base: BaseLM, prompt: Prompt, tokens: list[int]) -> int:
    return base.decode(tokens).split().count(prompt.data["wanted"])


@pytest.mark.parametrize("truncated", ["fail", "score", "drop"])
def test_what_is_found_along_a_row(cache: Path, base: BaseLM, truncated: str) -> None:
    store = store_of(cache, base, truncated=truncated)
    collect(base, HowOften(), store)
    rollouts = store.read()
    outcomes = set()
    for row in range(len(rollouts)):
        tokens, _ = rollouts.response(row)
        prompt = rollouts.prompts[rollouts.prompt_index_N[row]]
        found = rollouts.lookahead(row)
        batch = RolloutBatch.unjudged(*base.encode_prompts([prompt]), [0], [tokens.tolist()])
        log_p_TV = base.head.logits(base.states(batch).hidden_BTD[0]).log_softmax(-1)
        exact = log_p_TV.topk(K, -1)
        assert torch.equal(torch.tensor(found.candidate_TK), exact.indices.int())
        torch.testing.assert_close(torch.tensor(found.log_p_TK), exact.values, rtol=0, atol=1e-5)
        for t, candidate_K in enumerate(found.candidate_TK):
            prefix = tokens[:t].tolist()
            assert found.progress_T[t] == pytest.approx(min(3, count(base, prompt, prefix)) / 3)
            for k, token in enumerate(candidate_K.tolist()):
                if token in base.eos_ids:
                    expected = float(count(base, prompt, prefix) > 0)
                elif t + 1 == store.spec.max_new_tokens:
                    expected = float(truncated == "score" and count(base, prompt, [*prefix, token]) > 0)
                else:
                    expected = min(3, count(base, prompt, [*prefix, token])) / 3
                assert found.outlook_TK[t, k] == pytest.approx(expected)
                outcomes.add(round(expected, 2))
    assert outcomes == {0, 0.33, 0.67, 1}


def test_a_store_without_is_completed_without_sampling_or_judging_again(
    cache: Path, base: BaseLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(base, HowOften(), store_of(cache, base, candidates=0))
    store = store_of(cache, base)
    assert not store.is_complete()
    with pytest.raises(StoreError, match="lacks 4 of 4 blocks"):
        store.read()

    def never(*_: object) -> None:
        raise AssertionError("sampled or judged twice")

    monkeypatch.setattr("dinado.rollouts.collect.sample", never)
    monkeypatch.setattr("dinado.rollouts.collect._score_block", never)
    collect(base, HowOften(), store)
    assert store.is_complete() and store_of(cache, base, candidates=0).is_complete()
    assert not store_of(cache, base, candidates=K + 1).is_complete()


def test_damage_is_found_reported_and_repaired(cache: Path, base: BaseLM, caplog: pytest.LogCaptureFixture) -> None:
    store = store_of(cache, base)
    collect(base, HowOften(), store)
    before = [store.read().lookahead(row) for row in range(len(store.read()))]
    (shard,) = store.folder.rglob("lookahead-*/block-00001.arrow")
    shard.write_bytes(shard.read_bytes()[:-40])
    assert store.missing_blocks() == [1]
    assert f"{shard} is damaged" in caplog.text
    collect(base, HowOften(), store)
    after = [store.read().lookahead(row) for row in range(len(store.read()))]
    assert all(np.array_equal(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True))


def test_what_is_about_other_texts_is_not_used(cache: Path, base: BaseLM) -> None:
    store = store_of(cache, base)
    collect(base, HowOften(), store)
    first, second = (next(store.folder.rglob(f"lookahead-*/block-0000{n}.arrow")) for n in (0, 1))
    for suffix in ("", ".sha256"):
        Path(f"{first}{suffix}").write_bytes(Path(f"{second}{suffix}").read_bytes())
    assert not store.has_lookahead(0)


def test_a_failing_oracle_loses_nothing(cache: Path, base: BaseLM) -> None:
    store = RolloutStore(cache, make_spec(base), Fails().fingerprint, candidates=K)
    with pytest.raises(OracleError, match="Fails returned nan for prompt 'p4'"):
        collect(base, Fails(), store)
    assert [store.has_scores(block) for block in range(4)] == [True, True, True, False]
    assert [store.has_lookahead(block) for block in range(4)] == [True, True, False, False]


def never(*_: object) -> None:
    raise AssertionError("the base read its own texts a second time")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("truncated", ["fail", "score", "drop"])
def test_sampling_remembers_the_likely_tokens(
    cache: Path, base: BaseLM, temperature: float, truncated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.temperature = temperature
    store = store_of(cache, base, truncated=truncated)
    with monkeypatch.context() as patch:
        patch.setattr("dinado.rollouts.collect.likeliest", never)
        collect(base, HowOften(), store)
    for block in range(store.spec.num_blocks):
        remembered = store.likeliest(block)
        assert remembered is not None
        for seen, read in zip(remembered, likeliest(base, store.text_batch(base, block), K), strict=True):
            assert np.array_equal(seen.candidate_TK, read.candidate_TK)
            np.testing.assert_allclose(seen.log_p_TK, read.log_p_TK, rtol=0, atol=1e-5)


def test_another_oracle_needs_no_base(cache: Path, base: BaseLM, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(base, HowOften(), store_of(cache, base))
    monkeypatch.setattr("dinado.rollouts.collect.likeliest", never)
    monkeypatch.setattr("dinado.rollouts.collect.sample", never)
    store = RolloutStore(cache, make_spec(base), "another", candidates=K)
    collect(base, HowOften(), store)
    assert store.is_complete()


def test_a_run_killed_before_the_texts_makes_the_same_again(
    cache: Path, tmp_path: Path, base: BaseLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store_of(tmp_path / "whole", base)
    collect(base, HowOften(), whole)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    store = store_of(cache, base)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RolloutStore, "write_texts", killed)
        collect(base, HowOften(), store)
    assert list(store.folder.rglob("likeliest-*/*.arrow")) and store.likeliest(0) is None
    collect(base, HowOften(), store)
    for path in sorted(whole.folder.rglob("*.arrow")):
        assert (store.folder / path.relative_to(whole.folder)).read_bytes() == path.read_bytes()


def test_damaged_likely_tokens_are_found_by_the_base(cache: Path, base: BaseLM) -> None:
    store = store_of(cache, base)
    collect(base, HowOften(), store)
    (shard,) = store.folder.rglob("likeliest-*/block-00001.arrow")
    shard.write_bytes(shard.read_bytes()[:-40])
    for path in store.folder.rglob("lookahead-*/block-00001.arrow"):
        path.unlink()
    collect(base, HowOften(), store)
    assert store.is_complete() and store.likeliest(1) is None
