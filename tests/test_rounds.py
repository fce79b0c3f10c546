"""Rounds of sampling from the model under training: densities, weights, resuming, processes, and what is refused.

Longer than 300 lines because it is about one thing: all of it asks one run in rounds.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import process
from helpers import exact_gpt2_words, load_checkpoint
from test_checkpoints import METHODS as METHOD_WORDS
from test_checkpoints import Crash, status, train, weights

from datamodules.rollout_datamodule import RolloutDataModule
from dinado.errors import CheckpointError, StoreError
from dinado.rollouts import density
from dinado.rollouts.drawn import missing_densities, read_rounds
from dinado.rollouts.rollout_store import RolloutStore
from engine import session
from engine.restoring import build_base, build_world
from engine.rounds import Rounds, weights_fingerprint
from lightning_modules.callbacks.graceful_stop import GracefulStop
from workbench.run_folder import RunFolder
from workbench.settings import loader

ROUNDS = ("rollouts.rounds=3", "targets.weights=balance", "optim.lr=3e-2")
METHODS = ("nado", "merge")


def stores_of(run: RunFolder, models: list[str]) -> tuple[RolloutDataModule, list[RolloutStore]]:
    """The data module and all stores of a run whose rounds were drawn from these models."""
    from datamodules.tasks import build_task

    config = loader.from_run_folder(run.path).config
    data = RolloutDataModule(config, build_base(config), build_task(config))
    data.setup("fit")
    for model in models:
        data.add_round(model)
    return data, data.stores


def models_of(run: RunFolder) -> list[str]:
    state = load_checkpoint(run.path)["RolloutDataModule"]
    return state["models"]


def build_success(run: RunFolder) -> float:
    """The exact rate of success of a run's base."""
    config = loader.from_run_folder(run.path).config
    world = build_world(config, build_base(config))
    assert world is not None
    return world.success_rate


@pytest.fixture(scope="module", params=METHODS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunFolder]:
    folder = tmp_path_factory.mktemp(request.param)
    outcome, run = train(folder, request.param, "straight", *ROUNDS)
    assert outcome.exit_code == 0
    return request.param, run


def test_every_round_is_drawn_from_base_and_model(finished: tuple[str, RunFolder]) -> None:
    _, run = finished
    models = models_of(run)
    assert len(set(models)) == 2, "two later rounds, from two different models"
    data, stores = stores_of(run, models)
    assert [(store.round, store.spec.model) for store in stores] == [
        (0, None),
        *((1, model) for model in (None, models[0])),
        *((2, model) for model in (None, models[1])),
    ]
    assert [store.spec.num_rollouts() for store in stores] == [22, 5, 16, 5, 16]
    assert len(data.rows) == 64 and not missing_densities(stores)
    logged = [row for row in run.metrics() if "rollouts/round" in row]
    assert [(row["step"], row["rollouts/round"]) for row in logged] == [(2, 1), (4, 2)]
    assert all(0 < row["weights/ess_fraction"] <= 1 for row in logged)


def test_densities_are_those_of_the_models(finished: tuple[str, RunFolder]) -> None:
    """Every stored number, against the model that the round was drawn from, put back and asked again."""
    from engine.rounds import _load_model
    from lightning_modules.build_method import build_method

    _, run = finished
    models = models_of(run)
    data, stores = stores_of(run, models)
    method = build_method(data.config, data._base).eval()
    drawn = read_rounds(stores)
    tokens = [drawn.rollouts.response(row)[0].tolist() for row in range(len(drawn.rollouts))]
    by_model = {store.spec.model: store for store in stores}
    assert list(by_model) == [None, *models]
    for j, (model, store) in enumerate(by_model.items()):
        if model is not None:
            method.load_state_dict(_load_model(store), strict=False)
            assert weights_fingerprint(method) == model
        controlled = method.controlled() if model is not None else method.base.model
        for row in range(0, len(tokens), 5):
            ids = torch.tensor([method.base.encode_prompts(data.task.train_prompts)[0][0].tolist() + tokens[row]])
            with torch.no_grad(), method.base.adapters(on=model is not None):
                log_q_LV = controlled(ids).logits[0].float().log_softmax(1)
            start = ids.shape[1] - len(tokens[row]) - 1
            plain = sum(float(log_q_LV[start + t, token]) for t, token in enumerate(tokens[row]))
            assert drawn.log_s_NJ[row, j] == pytest.approx(plain, abs=1e-4)
    own = drawn.log_s_NJ[np.arange(len(tokens)), drawn.source_N]
    np.testing.assert_allclose(own, drawn.rollouts.log_s_N)
    spread = np.abs(drawn.log_s_NJ[:, 1] - drawn.log_s_NJ[:, 0])
    assert spread.max() > 0.05, "the models have left the base"


def test_weights_are_p_over_the_mixture(finished: tuple[str, RunFolder]) -> None:
    _, run = finished
    data, stores = stores_of(run, models_of(run))
    drawn = read_rounds(stores)
    assert drawn.count_PJ.tolist() == [[32, 16, 16]]
    mixture = (drawn.count_PJ[0] / 64 * np.exp(drawn.log_s_NJ)).sum(1)
    weight = np.exp(drawn.rollouts.log_p_N) / mixture
    np.testing.assert_allclose(data.rows.weight_N, weight / weight.mean(), rtol=1e-5)
    world = build_world(data.config, data._base)
    assert world is not None
    assert data.summary["rollouts/success_rate_low"] < world.success_rate < data.summary["rollouts/success_rate_high"]


@pytest.mark.parametrize("moment", ["in a round", "while sampling", "while weighing"])
def test_a_killed_run_goes_on_in_its_round(finished: tuple[str, RunFolder], moment: str, tmp_path: Path) -> None:
    name, straight = finished
    run_id = moment.replace(" ", "-")
    words = [*ROUNDS, "trainer.checkpoint_every=100"]
    with pytest.MonkeyPatch.context() as patch:
        if moment == "in a round":
            crash_in_step(5, patch)
        elif moment == "while sampling":
            patch.setattr("datamodules.fill_stores.collect", crashing(after=4))
        else:
            patch.setattr("engine.rounds.fill_densities", crashing(after=1))
        with pytest.raises(Crash):
            train(tmp_path, name, run_id, *words)
    run = RunFolder(tmp_path / "runs" / "exact_world" / run_id)
    assert status(run.path).startswith("failed")
    reached = load_checkpoint(run.path)["global_step"]
    assert reached == (2 if moment == "while weighing" else 4), "a round begins with a checkpoint"
    sampled = [file for file in (tmp_path / "cache").rglob("block-*.arrow")]
    content = {file: file.read_bytes() for file in sampled}
    outcome, run = train(tmp_path, name, run_id, resume=True)
    assert outcome.exit_code == 0
    expected = weights(straight)
    for key, value in weights(run).items():
        assert torch.equal(value, expected[key]), key
    assert all(file.read_bytes() == before for file, before in content.items()), "nothing is made twice"


def test_ctrl_c_while_a_round_is_drawn_stops_there(finished: tuple[str, RunFolder], tmp_path: Path) -> None:
    from datamodules import fill_stores as prepare

    name, straight = finished
    original, rounds = prepare.collect, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if args[2].spec.model is not None:
            rounds.append(args[2].round)
            if rounds == [1]:
                signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "collect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, name, "stopped", *ROUNDS)
    run = RunFolder(tmp_path / "runs" / "exact_world" / "stopped")
    assert status(run.path) == "interrupted: SIGINT" and load_checkpoint(run.path)["global_step"] == 2
    outcome, run = train(tmp_path, name, "stopped", resume=True)
    assert outcome.exit_code == 0
    expected = weights(straight)
    for key, value in weights(run).items():
        assert torch.equal(value, expected[key]), key


def test_a_finished_run_of_rounds_is_not_stretched(finished: tuple[str, RunFolder]) -> None:
    """Rounds are spread over the steps, so with more of them they would have begun elsewhere."""
    _, run = finished
    config = loader.from_run_folder(run.path, ["optim.steps=9"]).config
    with (
        RunFolder(run.path) as folder,
        pytest.raises(CheckpointError, match=r"rounds that begin before steps=\[0, 2, 4"),
    ):
        session.train(config, folder, resume=True, quiet=True)


def crash_in_step(step: int, patch: pytest.MonkeyPatch) -> None:
    """As good as a kill once a step has been taken, before anything is saved after it."""
    original = GracefulStop.on_train_batch_end

    def crash(self: GracefulStop, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            raise Crash
        original(self, trainer, *args)

    patch.setattr(GracefulStop, "on_train_batch_end", crash)


def crashing(after: int) -> Any:
    """The real thing a few times, then as good as a kill."""
    from datamodules import fill_stores as prepare

    original = {"collect": prepare.collect, "fill_densities": density.fill_densities}
    calls = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > after:
            raise Crash
        return original["collect" if "states" in kwargs else "fill_densities"](*args, **kwargs)

    return call


def test_a_model_that_is_gone_is_one_line(finished: tuple[str, RunFolder], tmp_path: Path) -> None:
    """Rollouts of an earlier round that are damaged are made again from its model; without that there is no way on."""
    name, straight = finished
    with pytest.MonkeyPatch.context() as patch:
        crash_in_step(5, patch)
        with pytest.raises(Crash):
            train(tmp_path, name, "damaged", *ROUNDS)
    (first, *_) = sorted((tmp_path / "cache").rglob("model.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    block = next(first.parent.glob("round-*/block-00000.arrow"))
    content, model = block.read_bytes(), first.read_bytes()
    block.write_bytes(content[:-7])
    first.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        train(tmp_path, name, "damaged", resume=True)
    first.write_bytes(model)
    outcome, run = train(tmp_path, name, "damaged", resume=True)
    assert outcome.exit_code == 0 and block.read_bytes() == content
    expected = weights(straight)
    for key, value in weights(run).items():
        assert torch.equal(value, expected[key]), key


def test_drawing_leaves_the_method_as_it_was(finished: tuple[str, RunFolder]) -> None:
    """Earlier models are put in place to be asked; afterwards weights, modes and gradients are what they were."""
    name, run = finished
    seen = []
    original = Rounds.draw

    def watched(self: Rounds, index: int, model: str | None = None) -> None:
        def state() -> tuple[Any, ...]:
            method = self._method
            grads = [p.requires_grad for p in method.parameters()]
            return weights_fingerprint(method), [m.training for m in method.modules()], grads, torch.is_grad_enabled()

        before = state()
        original(self, index, model)
        assert state() == before
        seen.append(index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rounds, "draw", watched)
        train(run.path.parent.parent.parent, name, "watched", *ROUNDS)
    assert seen == [1, 2]


@pytest.mark.slow
def test_a_run_that_explored_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a round was drawn from is in the checkpoint, temperatures included."""
    words = ("task.name=exact_world", "task.vocab_size=8", "task.length=6", "task.required=[2,3]", "task.rarity=-3")
    words = (*words, "rollouts.max_new_tokens=6", "optim.steps=20", "targets.weights=importance", "rollouts.rounds=16")
    words = (*words, "rollouts.per_prompt=320", "trainer.checkpoint_every=1")
    straight = train(tmp_path / "a", "nado", "straight", *words)[1]
    assert models_of(straight)[0] == "T=1.5"
    crash_in_step(9, monkeypatch)
    with pytest.raises(Crash):
        train(tmp_path / "b", "nado", "killed", *words)
    monkeypatch.undo()
    outcome, run = train(tmp_path / "b", "nado", "killed", resume=True)
    assert outcome.exit_code == 0 and models_of(run) == models_of(straight)
    expected = weights(straight)
    for key, value in weights(run).items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.slow
def test_two_processes_share_a_round(tmp_path: Path) -> None:
    """The same rollouts and densities to the byte, and the same result, from one process and from two."""
    words = exact_gpt2_words(tmp_path, "method=nado", *ROUNDS, "trainer.progress=false", "rollouts.block_size=1")
    contents, results = [], []
    for processes in (1, 2):
        cache = tmp_path / f"cache{processes}"
        command = [*words, f"data.cache={cache}", f"trainer.devices={processes}", "trainer.accelerator=cpu", "--json"]
        done = process("train.py", "exact_world", *command, OMP_NUM_THREADS="1")
        assert done.code == 0, done.err
        results.append(done.json)
        contents.append({file.relative_to(cache): file.read_bytes() for file in cache.rglob("round-000/block-*.arrow")})
    assert contents[0] == contents[1]
    for key in ("val/kl_to_optimum", "weights/ess_fraction", "rollouts/success"):
        assert results[0][key] == pytest.approx(results[1][key], rel=1e-3)


@pytest.mark.slow
def test_rounds_close_more_of_the_gap(tmp_path: Path) -> None:
    """A rare oracle: as many rollouts and steps, an outcome that one shot is far from."""
    words = ("task.name=exact_world", "task.vocab_size=8", "task.length=8", "task.required=[2,3]", "task.rarity=-1")
    words = (*words, "rollouts.max_new_tokens=8", "rollouts.per_prompt=2000", "optim.steps=300", "optim.lr=1e-2")
    words = (
        *words,
        "optim.batch_size=64",
        "optim.rows_per_prompt=64",
        "objective.oracle.token_ce=0",
        "network.width=32",
    )
    once = train(tmp_path, "nado", "once", *words)[0].metrics
    rounds = train(
        tmp_path, "nado", "rounds", *words, "rollouts.rounds=6", "targets.weights=balance", "rollouts.base_share=0.1"
    )[0].metrics
    assert rounds["weights/effective_positives"] > 5 * once["weights/effective_positives"]
    assert rounds["val/kl_to_optimum"] < 0.5 * once["val/kl_to_optimum"]
    error = abs(rounds["rollouts/success_rate"] - rounds["base/success_exact"])
    assert error < abs(rounds["rollouts/success_rate_high"] - rounds["rollouts/success_rate_low"])


@pytest.mark.slow
def test_rounds_are_drawn_until_something_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rejected rollouts alone Hard learns to be anywhere else, and never comes back."""
    words = ("task.name=exact_world", "task.vocab_size=8", "task.length=6", "task.required=[2,3]", "task.rarity=-3")
    words = (*words, "rollouts.max_new_tokens=6", "optim.steps=20", *ROUNDS[1:], "rollouts.rounds=16", "seed=1")
    monkeypatch.setitem(METHOD_WORDS, "hard", ("method=dinado_hard",))
    _, run = train(tmp_path, "hard", "rare", *words, "rollouts.per_prompt=320")
    rounds = [row for row in run.metrics() if "rollouts/round" in row]
    early = [row["rollouts/success"] for row in rounds if row["step"] == 0]
    assert len(early) >= 2, "the first rounds have nothing"
    assert early[-1] > 0 and not any(early[:-1])
    flatter = [f"T={1.5 + 0.5 * n:g}" for n in range(len(early))]
    assert models_of(run)[: len(early)] == flatter and "T=" not in "".join(models_of(run)[len(early) :])
    _, stores = stores_of(run, models_of(run))
    drawn = [[store.read().text(row) for row in range(len(store.read()))] for store in stores[1:3]]
    assert {store.round for store in stores[1:3]} == {1}
    assert drawn[0] != drawn[1][: len(drawn[0])], "base and flattened base have streams of their own"
    *_, last = rounds
    assert last["rollouts/success_rate_low"] < build_success(run) < last["rollouts/success_rate_high"]
    starts = [20 * index // 16 for index in range(16)]
    assert [row["step"] for row in rounds[len(early) :]] == starts[len(early) + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("words", [("targets.positives_share=0.5", "optim.batch_size=8"), ("optim.norm_steps=3",)])
def test_rounds_are_drawn_until_a_step_can_be_filled(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Four accepted rollouts in every step, or a norm head that learns before the first one."""
    few = (
        "task.required=[2,3,4]",
        "rollouts.per_prompt=64",
        "rollouts.rounds=16",
        *ROUNDS[1:],
        "optim.steps=16",
        "seed=3",
    )
    outcome, run = train(tmp_path, "merge", "filled", *few, *words)
    assert outcome.exit_code == 0
    early = [row["rollouts/success"] for row in run.metrics() if "rollouts/round" in row and row["step"] == 0]
    assert early and early[-1] > 0


def test_too_few_accepted_rollouts_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "nado", "few", "task.required=[2,3]", "rollouts.per_prompt=16")
    said = " ".join(capsys.readouterr().err.split())
    assert "too few to trust" in said and "rollouts.rounds" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_rounds_with_states_on_disk_and_looking_ahead(tmp_path: Path, name: str) -> None:
    """What else is made from rollouts is made for those of later rounds too; states on disk change no number."""
    words = (*ROUNDS, "objective.lookahead.weight=1", "objective.lookahead.candidates=4")
    plain, kept = (train(tmp_path, name, kind, *words, f"data.states={kind}")[0].metrics for kind in ("off", "float32"))
    assert len(list((tmp_path / "cache").rglob("states-*/prompts-*.arrow"))) == 5, "of every store"
    assert len(list((tmp_path / "cache").rglob("lookahead-*/block-*.arrow"))) >= 5
    for key in ("train/lookahead", "val/kl_to_optimum", "weights/ess_fraction", "targets/critic_ce"):
        assert kept[key] == pytest.approx(plain[key], rel=1e-3)
