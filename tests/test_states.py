"""The frozen base's states on disk: the same numbers as running it, recorded once, damage found, limits kept."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from datamodule_case import make_config, words_task
from helpers import base_lm, random_network
from torch import Tensor

from datamodules import state_choice as states_module
from datamodules.fill_stores import StoreFiller
from datamodules.held_out import HeldOut
from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.run_stores import RunStores
from datamodules.state_choice import StateChoice
from datamodules.tasks import Task
from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.errors import ConfigError, StoreError
from dinado.objectives.vocabulary import VocabularyStatistics
from dinado.parameters.lora import Lora
from dinado.parameters.parameterisation import Needs
from dinado.rollouts.state_store import record_states
from workbench.settings.config import Config
from workbench.settings.derived import depths_read

NEEDS = Needs(maximum=True, taps=(0.5,))


def settings(cache: Path, kept: str, **more: object) -> Config:
    config = make_config(cache, data__states=kept, **more)
    config.trainer.progress = False
    config.network.taps = [0.0, 0.5]
    config.method = str(more.get("method", "dinado_soft"))
    return config


def filler(config: Config, base: BaseLM, task: Task) -> StoreFiller:
    return StoreFiller(base, task.oracle, StateChoice(config, base), progress=False)


def prepare_rollouts(config: Config, base: BaseLM, task: Task) -> None:
    filler(config, base, task).fill_all(RunStores(config, base, task).needed())
    filler(config, base, task).fill_held_out(HeldOut(config, base, task))


def prepare_states(config: Config, base: BaseLM, task: Task) -> None:
    filler(config, base, task).fill_states(RunStores(config, base, task).train())


def served(config: Config, base: BaseLM) -> RolloutDataModule:
    task = words_task()
    prepare_rollouts(config, base, task)
    prepare_states(config, base, task)
    data = RolloutDataModule(config, base, task)
    data.setup("fit")
    return data


def without(batch: RolloutBatch) -> RolloutBatch:
    return dataclasses.replace(batch, recorded=None)


def numbers(statistics: VocabularyStatistics) -> Tensor:
    return torch.stack([field for field in statistics if field is not None])


@pytest.mark.parametrize("truncated", ["fail", "drop"])
@pytest.mark.parametrize(("kept", "tolerance"), [("float32", 1e-5), ("float16", 2e-2), ("bfloat16", 1e-1)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "markov"])
def test_a_network_reads_them_instead_of_running_the_base(
    tmp_path: Path, name: str, kept: str, tolerance: float, truncated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_lm(name, vocab_size=6)
    config = settings(tmp_path, kept, rollouts__truncated=truncated)
    scores = random_network(base, "identity", taps=config.network.taps)
    data = served(config, base)
    steps = list(data.batches(0, 2))
    assert all(batch.recorded is not None for batch in steps)
    assert len({int(n) for batch in steps for n in batch.prompt_mask_PS.sum(1)}) > 1, "prompts are padded"
    needs = NEEDS._replace(taps=())
    computed = [scores(without(batch), needs) for batch in steps]
    monkeypatch.setattr(base.model, "forward", None)
    monkeypatch.setattr(base.model.base_model, "forward", None)
    for batch, exact in zip(steps, computed, strict=True):
        found = scores(batch.to("cpu"), needs)
        torch.testing.assert_close(numbers(found.statistics), numbers(exact.statistics), rtol=tolerance, atol=tolerance)


def test_a_policy_reads_the_frozen_base_from_them(tmp_path: Path) -> None:
    base = base_lm("llama", vocab_size=6)
    config = settings(tmp_path, "float32", method="dinado_merge", parameters="lora")
    config.objective.norm.taps = [0.5]
    data = served(config, base)
    scores = Lora.inject(base, link="identity", r=2, alpha=4.0, dropout=0.0, targets="all-linear", seed=0)
    with torch.no_grad():
        for parameter in base.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    (batch,) = data.batches(0, 1)
    found, exact = scores(batch, NEEDS), scores(without(batch), NEEDS)
    torch.testing.assert_close(numbers(found.statistics), numbers(exact.statistics), rtol=1e-5, atol=1e-5)
    mask = batch.response_mask_BT.bool()
    torch.testing.assert_close(found.taps[0][mask], exact.taps[0][mask], rtol=1e-5, atol=1e-5)
    assert found.statistics.score[mask].abs().max() > 0.01, "the policy has left the base"


def test_recorded_once_and_again_where_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, config, task = base_lm("llama", vocab_size=6), settings(tmp_path, "bfloat16"), words_task()
    served(config, base)
    store = StateChoice(config, base).of(RunStores(config, base, task).train())
    assert store is not None and not store.missing_blocks()
    files = sorted(store.folder.glob("*.arrow"))
    size = sum(file.stat().st_size for file in files)
    assert store.num_bytes(base) <= size <= store.num_bytes(base) + 2000 * len(files)
    before = {file: file.read_bytes() for file in files}
    files[0].write_bytes(before[files[0]][:-9])
    files[-1].unlink()
    assert len(store.missing_blocks()) == 2
    with pytest.raises(StoreError, match="start the run again"):
        store.read()
    recorded: list[int] = []
    monkeypatch.setattr("datamodules.fill_stores.record_states", lambda *a: (recorded.append(a[2]), record_states(*a)))
    prepare_states(config, base, task)
    assert len(recorded) == 2
    assert store.read().response(0).dtype == torch.bfloat16
    assert {file for file in files if file.read_bytes() != before[file]} <= {files[0], files[-1]}
    prepare_states(config, base, task)
    assert len(recorded) == 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "markov"])
def test_kept_on_the_way_as_in_a_pass_of_their_own(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, task = base_lm(name, vocab_size=6), words_task()
    config = settings(tmp_path, "float32", rollouts__max_new_tokens=5)
    with monkeypatch.context() as forbidden:
        forbidden.setattr("datamodules.fill_stores.record_states", None)
        served(config, base)
    store = StateChoice(config, base).of(RunStores(config, base, task).train())
    assert store is not None
    found = store.read()
    for block in range(store.store.spec.num_blocks):
        record_states(base, store, block)
    again, rollouts = store.read(), store.store.read()
    assert len(set(rollouts.length_N.tolist())) > 2, "rows end at different times"
    for row, length in enumerate(rollouts.length_N):
        assert len(found.response(row)) == length - 1
        torch.testing.assert_close(found.response(row), again.response(row), rtol=1e-5, atol=1e-5)
    for index in range(len(task.train_prompts)):
        torch.testing.assert_close(found.prompt(index), again.prompt(index), rtol=1e-5, atol=1e-5)


def test_killed_between_states_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, task = base_lm("llama", vocab_size=6), words_task()
    config = settings(tmp_path / "whole", "float32")
    served(config, base)
    whole = RunStores(config, base, task).train()
    config.data.cache = str(tmp_path / "killed")
    killed = RunStores(config, base, task).train()
    with monkeypatch.context() as patched:
        patched.setattr(
            "dinado.rollouts.rollout_store.RolloutStore.write_texts", lambda *_: (_ for _ in ()).throw(OSError)
        )
        with pytest.raises(OSError):
            prepare_rollouts(config, base, task)
    assert list(killed.texts_folder.glob("states-*/*.arrow")) and not killed.has_texts(0)
    prepare_rollouts(config, base, task)
    for file in whole.texts_folder.rglob("*.arrow"):
        assert file.read_bytes() == (killed.texts_folder / file.relative_to(whole.texts_folder)).read_bytes()


def test_a_limit_that_may_be_passed_is_left_to_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, task = base_lm("llama", vocab_size=6), words_task()
    config = settings(tmp_path, "float32")
    store = RunStores(config, base, task).train()
    first = StateChoice(config, base).while_sampling(store)
    assert first is not None
    config.data.states_limit_gb = (first.most_bytes(base) - 1) / 1e9
    assert StateChoice(config, base).while_sampling(store) is None
    recorded: list[int] = []
    monkeypatch.setattr("datamodules.fill_stores.record_states", lambda *a: (recorded.append(a[2]), record_states(*a)))
    served(config, base)
    assert recorded == list(range(store.spec.num_blocks))


def test_states_of_other_texts_are_not_read(tmp_path: Path) -> None:
    base, config, task = base_lm("llama", vocab_size=6), settings(tmp_path, "float32"), words_task()
    served(config, base)
    rollouts = RunStores(config, base, task).train()
    store = StateChoice(config, base).of(rollouts)
    assert store is not None
    texts = sorted(rollouts.texts_folder.glob("block-*.arrow*"))
    for first, second in zip(texts[:2], texts[2:4], strict=True):
        first.write_bytes(second.read_bytes().replace(second.name.encode(), first.name.encode()))
    assert store.missing_blocks() == [0]


def test_two_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, config, task = base_lm("llama", vocab_size=6), settings(tmp_path, "off"), words_task()
    prepare_rollouts(config, base, task)
    config.data.states = "float32"
    recorded: list[int] = []
    monkeypatch.setattr("datamodules.fill_stores.record_states", lambda *a: recorded.append(a[2]))
    monkeypatch.setattr("dinado.rollouts.state_store.StateStore.wait", lambda self: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        prepare_states(config, base, task)
    assert recorded == [0, 2, 1]


def test_a_type_that_cannot_hold_them(tmp_path: Path) -> None:
    base, config = base_lm("llama", vocab_size=6), settings(tmp_path, "float16")
    with torch.no_grad():
        base.model.model.norm.weight.fill_(1e6)
    with pytest.raises(StoreError, match=r"data\.states=bfloat16"):
        served(config, base)


def test_over_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "WORTH_PARAMETERS", 0)
    base, task = base_lm("llama", vocab_size=6), words_task()
    config = settings(tmp_path, "float32", data__states_limit_gb=1e-6)
    with pytest.raises(ConfigError, match=r"over data.states_limit_gb=1e-06; raise it"):
        served(config, base)
    config.data.states = "auto"
    with caplog.at_level(logging.INFO):
        assert StateChoice(config, base).of(RunStores(config, base, task).train()) is None
    assert "the base runs at every step instead" in caplog.text
    config.data.states_limit_gb = 1.0
    assert StateChoice(config, base).of(RunStores(config, base, task).train()) is not None
    config.optim.steps = 1
    assert StateChoice(config, base).of(RunStores(config, base, task).train()) is None, "not worth a pass"


@pytest.mark.parametrize(
    ("method", "changes", "depths"),
    [
        ("nado", {}, (0.0, 0.5, 1.0)),
        ("dinado_soft", {}, (0.0, 0.5, 1.0)),
        ("dinado_merge", {"parameters": "lora"}, (1.0, 1.0)),
        (
            "dinado_merge",
            {"parameters": "lora", "objective__norm__kind": "mean", "objective__norm__input": "policy"},
            (),
        ),
        ("dinado_merge", {"parameters": "lora", "objective__norm__input": "policy"}, (1.0,)),
        (  # the norm head learns from the base's states first
            "dinado_merge",
            {"parameters": "lora", "objective__norm__input": "policy", "optim__norm_steps": 3},
            (1.0, 1.0),
        ),
        ("dinado_hard", {"parameters": "lora"}, (1.0, 1.0)),
        ("dinado_hard", {"parameters": "lora", "targets__root": "store"}, ()),
        ("sft", {}, ()),
    ],
)
def test_what_each_method_reads(
    tmp_path: Path, method: str, changes: dict[str, str], depths: tuple[float, ...]
) -> None:
    assert depths_read(settings(tmp_path, "float32", method=method, **changes)) == depths
