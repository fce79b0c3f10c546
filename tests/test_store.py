"""The rollout store: resuming, independence of the number of processes, damage, and oracles that fail."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from store_case import PROMPTS, Contains, content, make_spec, make_store, rows

from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_markov
from dinado.errors import DataError, StoreError
from dinado.evaluation.judged_samples import sample_and_judge
from dinado.oracles import Oracle
from dinado.prompt import Prompt
from dinado.rollouts import collect as collecting
from dinado.rollouts.collect import Progress, collect, progress_bar
from dinado.rollouts.proposal import Proposal
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.rollout_table import store_summary


def test_what_was_written_is_read(cache: Path, base: BaseLM) -> None:
    store = make_store(cache, base)
    assert store.missing_blocks() == [0, 1, 2, 3] and not store.is_complete()
    collect(base, Contains(), store)
    assert store.missing_blocks() == [] and store.is_complete()
    rollouts = store.read()
    assert len(rollouts) == 7 * 5
    assert rollouts.prompt_index_N.tolist() == [p for p in range(7) for _ in range(5)]
    table_VV = base.model.lm_head.weight.T.log_softmax(1)
    for row in range(len(rollouts)):
        tokens, log_p = rollouts.response(row)
        prompt = PROMPTS[rollouts.prompt_index_N[row]]
        before = [int(prompt.text), *tokens[:-1].tolist()]
        assert log_p.tolist() == pytest.approx(
            [float(table_VV[a, b]) for a, b in zip(before, tokens, strict=True)], abs=1e-5
        )
        assert rollouts.log_p_N[row] == pytest.approx(float(log_p.sum()), abs=1e-5)
        assert rollouts.log_s_N[row] == rollouts.log_p_N[row]
        assert rollouts.length_N[row] == len(tokens) == len(log_p)
        assert rollouts.finished_N[row] == (tokens[-1] == 0)
        text = " ".join(str(token) for token in tokens if token)
        assert rollouts.text(row) == text
        obeys = rollouts.finished_N[row] and prompt.data["wanted"] in text.split()
        assert rollouts.score_N[row] == float(obeys)


def test_summary_counts_by_hand(cache: Path, base: BaseLM) -> None:
    store = make_store(cache, base, max_new_tokens=2)
    collect(base, Contains(), store)
    rollouts = store.read()
    found = rows(rollouts)
    summary = store_summary(rollouts)
    assert summary["rollouts/success"] == pytest.approx(sum(row[3] for row in found) / 35)
    assert summary["rollouts/distinct"] == pytest.approx(len({(row[0], row[2]) for row in found}) / 35)
    assert summary["rollouts/truncated"] == pytest.approx(sum(row[1][-1] != 0 for row in found) / 35)
    assert 0 < summary["rollouts/truncated"] < 1 and summary["rollouts/distinct"] < 1


def test_manifest_can_be_read_by_people(cache: Path, base: BaseLM) -> None:
    store = make_store(cache, base)
    collect(base, Contains(), store)
    text = (store.folder / "manifest.json").read_text()
    assert all(
        word in text for word in ('"per_prompt": 5', '"max_new_tokens": 6', '"temperature": 1.0', base.fingerprint)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"split": "val"},
        {"per_prompt": 6},
        {"max_new_tokens": 7},
        {"block_size": 3},
        {"proposal": Proposal(temperature=1.2)},
        {"prompts": PROMPTS[:-1]},
        {"prompts": (Prompt("other", "1"), *PROMPTS[1:])},
        {"prompts": (Prompt("p0", "4"), *PROMPTS[1:])},
    ],
)
def test_the_address_changes_with_everything_that_decides_the_texts(base: BaseLM, change: dict) -> None:
    assert make_spec(base, **change).fingerprint != make_spec(base).fingerprint
    assert make_spec(base).fingerprint == make_spec(base).fingerprint


def test_the_address_changes_with_the_base(base: BaseLM) -> None:
    other = BaseLM(*build_markov(5, seed=4))
    assert make_spec(other).fingerprint != make_spec(base).fingerprint


def test_train_and_val_streams_differ(cache: Path, base: BaseLM) -> None:
    stores = [make_store(cache, base, split=split) for split in ("train", "val")]
    for store in stores:
        collect(base, Contains(), store)
    assert rows(stores[0].read()) != rows(stores[1].read())


@pytest.mark.parametrize("size", [1, 3, 50])
def test_texts_do_not_depend_on_the_size_of_a_block(cache: Path, base: BaseLM, size: int) -> None:
    stores = [make_store(cache, base), make_store(cache, base, block_size=size)]
    for store in stores:
        collect(base, Contains(), store)
    assert rows(stores[0].read()) == rows(stores[1].read())


def test_evaluation_does_not_depend_on_how_many_prompts_it_takes_at_once(base: BaseLM) -> None:
    settings = dict(per_prompt=3, max_new_tokens=6, truncated="fail", seed=0)
    found = [sample_and_judge(base.model, base, Contains(), PROMPTS, block=block, **settings) for block in (2, 16)]
    assert found[0].texts == found[1].texts and len(set(found[0].texts)) > 5


class Stop(BaseException):
    """Like a KeyboardInterrupt."""


def stop_after(count: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.done >= count:
            raise Stop

    return on_progress


def test_resuming_after_an_interruption_gives_the_same_files(cache: Path, base: BaseLM, whole: dict) -> None:
    store = make_store(cache, base)
    with pytest.raises(Stop):
        collect(base, Contains(), store, on_progress=stop_after(20))
    assert store.missing_blocks() == [2, 3]
    progress = collect(base, Contains(), make_store(cache, base))
    assert progress.total == progress.done == 15
    assert content(store) == whole


def test_killed_in_the_middle_of_a_block(
    cache: Path, base: BaseLM, whole: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts of block 1 are there, its scores are not."""
    real = RolloutStore.write_scores

    def write_scores(self: RolloutStore, block: int, score_N: np.ndarray) -> None:
        if block == 1:
            raise Stop
        real(self, block, score_N)

    store = make_store(cache, base)
    with monkeypatch.context() as patch:
        patch.setattr(RolloutStore, "write_scores", write_scores)
        with pytest.raises(Stop):
            collect(base, Contains(), store)
    assert store.has_texts(1) and not store.has_scores(1)
    progress = collect(base, Contains(), store)
    assert content(store) == whole
    assert progress.tokens < sum(int(length) for length in store.read().length_N)


def test_a_killed_process_leaves_whole_blocks(cache: Path, base: BaseLM, whole: dict) -> None:
    """SIGKILL before the third block's file has its name; this process goes on."""

    def until_killed() -> None:
        def die(descriptor: int) -> None:
            if "block-00002.arrow" in os.readlink(f"/proc/self/fd/{descriptor}"):
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = die
        collect(base, Contains(), make_store(cache, base))

    process = multiprocessing.get_context("fork").Process(target=until_killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    store = make_store(cache, base)
    assert store.missing_blocks() == [2, 3]
    collect(base, Contains(), store)
    assert {name: data for name, data in content(store).items() if "tmp" not in name}.items() >= whole.items()


@pytest.mark.parametrize("world_size", [2, 3, 9])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_number_of_processes_changes_nothing(
    cache: Path, base: BaseLM, whole: dict, world_size: int, backwards: bool
) -> None:
    store = make_store(cache, base)
    for rank in sorted(range(world_size), reverse=backwards):
        # Each process sees what the others have written so far, as when one starts late.
        collect(base, Contains(), make_store(cache, base), rank=rank, world_size=world_size)
    assert content(store) == whole


def test_a_process_does_only_its_own_blocks_and_waits_for_others(cache: Path, base: BaseLM) -> None:
    store = make_store(cache, base)
    collect(base, Contains(), store, rank=0, world_size=2)
    assert store.missing_blocks() == [1, 3]
    with pytest.raises(StoreError, match="lacks 2 of 4 blocks"):
        store.read()
    waiting = threading.Thread(target=store.wait, args=(0.01,))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    collect(base, Contains(), store, rank=1, world_size=2)
    waiting.join(5)
    assert not waiting.is_alive()


@pytest.mark.parametrize("truncated", ["fail", "score", "drop"])
def test_truncated_responses(cache: Path, base: BaseLM, truncated: str) -> None:
    asked: list[str] = []

    class Remembers(Oracle):
        def settings(self) -> None:
            return None

        def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
            asked.extend(texts)
            return [1.0] * len(texts)

    oracle = Remembers()
    store = make_store(cache, base, oracle, truncated=truncated, max_new_tokens=2)
    collect(base, oracle, store)
    rollouts = store.read()
    unfinished = round(rollouts.truncated_share * 35)
    assert 0 < unfinished < 35
    assert len(asked) == (35 if truncated == "score" else 35 - unfinished)
    assert len(rollouts) == (35 - unfinished if truncated == "drop" else 35)
    expected = {"fail": rollouts.finished_N, "score": [1.0] * 35, "drop": [1.0] * len(rollouts)}[truncated]
    assert rollouts.score_N.tolist() == [float(value) for value in expected]
    # What is kept stays with its own tokens.
    for row in range(len(rollouts)):
        assert rollouts.finished_N[row] == (rollouts.response(row)[0][-1] == 0)
        assert rollouts.text(row) == base.decode(rollouts.response(row)[0].tolist())


def test_an_importance_proposal_is_recorded(cache: Path, base: BaseLM) -> None:
    store = make_store(cache, base, proposal=Proposal(temperature=2.0))
    collect(base, Contains(), store)
    rollouts = store.read()
    table_VV = base.model.lm_head.weight.T
    for row in range(0, len(rollouts), 5):
        tokens = rollouts.response(row)[0].tolist()
        pairs = list(zip([int(PROMPTS[rollouts.prompt_index_N[row]].text), *tokens], tokens, strict=False))
        log_s = sum(float((table_VV[a].log_softmax(0) / 2).log_softmax(0)[b]) for a, b in pairs)
        assert rollouts.log_s_N[row] == pytest.approx(log_s, abs=1e-4)


def test_a_folder_made_from_something_else_is_refused(cache: Path, base: BaseLM) -> None:
    store, other = make_store(cache, base), make_store(cache, base, per_prompt=6)
    collect(base, Contains(), store)
    store.folder.rename(other.folder)
    with pytest.raises(StoreError, match="another per_prompt") as error:
        make_store(cache, base, per_prompt=6)
    assert "\n" not in str(error.value)
    (other.folder / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=re.escape("manifest.json cannot be read")):
        make_store(cache, base, per_prompt=6)


def test_a_disk_that_refuses_is_a_user_error(cache: Path, base: BaseLM) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot be written"):
        collect(base, Contains(), make_store(cache, base))


def test_no_prompts(base: BaseLM) -> None:
    with pytest.raises(DataError, match="no train prompts"):
        make_spec(base, prompts=())


def test_one_line_says_what_was_collected(cache: Path, base: BaseLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), progress_bar("rollouts") as update:
        progress = collect(base, Contains(), make_store(cache, base), on_progress=update)
    lines = [record.message for record in caplog.records if record.name == collecting.__name__]
    assert len(lines) == 1 and "35 for 7 prompts" in lines[0] and "% accepted" in lines[0]
    assert progress.rollouts_per_s > 0 and progress.tokens == sum(make_store(cache, base).read().length_N)
