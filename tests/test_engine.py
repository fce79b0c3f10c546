"""Rollouts from an inference server: requests, weights, what fails and what is kept when it does."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from datamodule_case import make_config, markov_base, words_task
from engine_server import Behaviour, EngineServer
from store_case import Contains, content, make_spec, make_store

import train
from datamodules.engine_choice import served_texts
from datamodules.fill_stores import StoreFiller
from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.run_stores import RunStores
from datamodules.state_choice import StateChoice
from dinado.bases.causal import BaseLM
from dinado.errors import ConfigError, EngineError
from dinado.rollouts.collect import collect
from dinado.rollouts.engine_client import EngineClient
from dinado.rollouts.proposal import Proposal
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.served_texts import ServedTexts, differences
from workbench.settings import loader

ServerFor = Callable[..., EngineServer]


@pytest.fixture
def serve(base: BaseLM) -> Iterator[ServerFor]:
    """Start servers of the small base."""
    running: list[EngineServer] = []

    def start(port: int = 0, **behaviour: object) -> EngineServer:
        running.append(EngineServer(base, Behaviour(**behaviour), port).__enter__())  # type: ignore[arg-type]
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def served(server: EngineServer, limit: float = 0.1, **client: object) -> ServedTexts:
    settings: dict = {"patience_s": 5.0, "timeout_s": 20.0} | client
    return ServedTexts(EngineClient(server.url, **settings), limit)


def store_of(tmp_path: Path, base: BaseLM, source: ServedTexts, **changes: object) -> RolloutStore:
    return make_store(tmp_path, base, engine=source.client.identity, **changes)


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp", "someone"])
def test_texts_of_a_server_are_draws_of_the_base(owner: str, base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    server = serve(owner=owner)
    source = served(server)
    store = store_of(tmp_path, base, source, per_prompt=40)
    collect(base, Contains(), store, served=source)
    rollouts = store.read()
    np.testing.assert_allclose(rollouts.log_s_N, rollouts.log_p_N, atol=1e-4)
    batch = store.text_batch(base, 0)
    here = (base.log_probs(batch) * batch.response_mask_BT).sum(1)
    np.testing.assert_allclose(rollouts.log_p_N[: len(here)], here.numpy(), atol=1e-5)
    # Frequencies of the first token against the base's own probabilities, prompt by prompt.
    ids_PS, mask_PS = base.encode_prompts(store.spec.prompts)
    for prompt in range(len(store.spec.prompts)):
        logits = base.model(ids_PS[prompt][mask_PS[prompt].bool()][None]).logits[0, -1]
        expected_V = logits.softmax(0).detach().numpy()
        rows = np.flatnonzero(rollouts.prompt_index_N == prompt)
        found_V = np.bincount([rollouts.response(row)[0][0] for row in rows], minlength=len(expected_V)) / len(rows)
        assert np.abs(found_V - expected_V).max() < 4 * 0.5 / np.sqrt(len(rows))


def test_requests_leave_nothing_to_the_server(base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    server = serve()
    source = served(server)
    warm = dataclasses.replace(make_spec(base, engine=source.client.identity), proposal=Proposal(1.5))
    collect(base, Contains(), RolloutStore(tmp_path, warm, Contains().fingerprint), served=source)
    assert len(server.does.requests) == len(warm.prompts)
    seeds = set()
    for body in server.does.requests:
        assert (body["n"], body["max_tokens"], body["temperature"]) == (5, 6, 1.5)
        assert (body["top_p"], body["top_k"], body["repetition_penalty"], body["logprobs"]) == (1.0, -1, 1.0, 0)
        assert body["stop_token_ids"] == list(base.eos_ids) and body["return_token_ids"] is True
        assert all(isinstance(token, int) for token in body["prompt"])
        seeds.add(body["seed"])
    assert len(seeds) == len(warm.prompts)


def test_texts_depend_on_neither_blocks_nor_processes(base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    server = serve()
    source = served(server, requests=3)
    one = store_of(tmp_path / "one", base, source)
    collect(base, Contains(), one, served=source)
    two = store_of(tmp_path / "two", base, source, block_size=3)
    for rank in (1, 0):
        collect(base, Contains(), two, rank=rank, world_size=2, served=served(server, requests=3))
    assert one.table().column("tokens") == two.table().column("tokens")


def test_many_requests_are_under_way(base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    server = serve(slow_s=0.1)
    source = served(server, requests=6)
    store = store_of(tmp_path, base, source, block_size=1)
    start = time.monotonic()
    collect(base, Contains(), store, served=source)
    assert server.does.most_under_way == 6
    assert time.monotonic() - start < 0.1 * len(store.spec.prompts) + 1.0


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_are_tried_again(status: int, base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    source = served(serve(fail=4, status=status))
    store = store_of(tmp_path, base, source)
    collect(base, Contains(), store, served=source)
    assert store.is_complete()


def test_a_dead_server_costs_the_block_under_way(base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    server = serve(dead_after=3, status=500)
    source = served(server, requests=1, patience_s=0.3)
    store = store_of(tmp_path, base, source, block_size=1)
    with pytest.raises(EngineError, match=r"out of memory.*finished blocks are stored"):
        collect(base, Contains(), store, served=source)
    finished = [block for block in range(store.spec.num_blocks) if store.has_block(block)]
    assert len(finished) in (2, 3)
    before = content(store)
    server.does.dead_after = None
    collect(base, Contains(), store, served=source)
    after = content(store)
    assert store.is_complete() and all(after[name] == before[name] for name in before)


def test_a_restart_is_waited_for(base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    first = serve()
    source = served(first, patience_s=20.0)
    store = store_of(tmp_path, base, source)
    first.__exit__()

    def later() -> None:
        time.sleep(1.0)
        serve(port=first.port)

    threading.Thread(target=later, daemon=True).start()
    collect(base, Contains(), store, served=source)
    assert store.is_complete()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"without_ids": True}, "no token ids with log-probabilities"),
        ({"without_eos": True}, "not with an end-of-sequence token"),
        ({"shift": 0.5}, r"differ from the base's by 0\.5 nats a token.*rollouts.max_difference=0\.1.*processed_logp"),
        ({"shift": -50.0}, "no finite number up to 0"),
        ({"shift": float("nan")}, "no finite number up to 0"),
        ({"context": 6}, "the server's has 6"),
        ({"dead_after": 0, "status": 400}, r"/v1/completions: 400 out of memory"),
    ],
)
def test_unusable_answers(behaviour: dict, message: str, base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    source = served(serve(**behaviour), patience_s=0.3)
    store = store_of(tmp_path, base, source, per_prompt=30)
    with pytest.raises(EngineError, match=message):
        collect(base, Contains(), store, served=source)
    assert not any(store.has_texts(block) for block in range(store.spec.num_blocks))


def test_log_probabilities_before_temperature_are_noticed(base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    source = served(serve(raw=True))
    spec = dataclasses.replace(make_spec(base, engine=source.client.identity), proposal=Proposal(2.0))
    with pytest.raises(EngineError, match="processed_logprobs"):
        collect(base, Contains(), RolloutStore(tmp_path, spec, Contains().fingerprint), served=source)


def test_the_limit_can_be_raised_and_differences_are_recorded(base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    source = served(serve(shift=0.5), limit=1.0)
    store = store_of(tmp_path, base, source)
    collect(base, Contains(), store, served=source)
    numbers = differences(store.drawn_by())
    assert numbers["rollouts/engine_difference"] == pytest.approx(0.5, abs=1e-3)
    assert numbers["rollouts/engine_difference_max"] == pytest.approx(0.5, abs=1e-3)
    rollouts = store.read()
    np.testing.assert_allclose(rollouts.log_p_N - rollouts.log_s_N, 0.5 * rollouts.length_N, atol=1e-3)


@pytest.mark.parametrize("weights", ["importance", "balance"])
def test_weights_make_up_for_the_server(weights: str, serve: ServerFor, task: object, tmp_path: Path) -> None:
    """A server whose temperature is off tells so by its probabilities; the weighted success rate is the base's."""
    base = markov_base()
    server = serve(shift=0.0)
    config = make_config(
        tmp_path,
        rollouts__engine="openai",
        rollouts__url=server.url,
        rollouts__temperature=1.6,
        rollouts__per_prompt=400,
        targets__weights=weights,
        targets__clip=0.0,
    )
    local = make_config(tmp_path, rollouts__per_prompt=400)
    rates = []
    for settings in (config, local):
        states = StateChoice(settings, base)
        filler = StoreFiller(base, words_task().oracle, states, progress=False, served=served_texts(settings))
        filler.fill_all(RunStores(settings, base, words_task()).needed())
        data = RolloutDataModule(settings, base, words_task())
        data.setup("fit")
        rates.append(data.summary)
    there, here = rates
    assert there["rollouts/engine_difference"] < 1e-4 and "rollouts/engine_difference" not in here
    spread = here["rollouts/success_rate_high"] - here["rollouts/success_rate_low"]
    assert there["rollouts/success_rate"] == pytest.approx(here["rollouts/success_rate"], abs=spread)
    assert there["rollouts/success"] != pytest.approx(here["rollouts/success"], abs=0.01)


def test_another_server_draws_another_store(base: BaseLM, serve: ServerFor, tmp_path: Path) -> None:
    server = serve()
    config = make_config(tmp_path, rollouts__engine="openai", rollouts__url=server.url, targets__weights="importance")

    def store() -> RolloutStore:
        return RunStores(config, base, words_task()).train()

    first = store()
    told = json.loads(first.spec.engine or "")
    assert (told["engine"], told["version"], told["model"]) == ("vllm", "0.11.0", "tiny")
    server.does.version = "0.12.0"
    assert store().folder != first.folder  # it is empty: whoever fills it now is 0.12.0
    filler = StoreFiller(
        base, words_task().oracle, StateChoice(config, base), progress=False, served=served_texts(config)
    )
    filler.fill_all([store()])
    full = store()
    server.__exit__()
    again = store()  # complete: the server is not asked
    assert again.folder == full.folder and again.is_complete()


def test_a_server_that_is_not_there(base: BaseLM, tmp_path: Path) -> None:
    client = EngineClient("http://127.0.0.1:9", patience_s=0.2)
    with pytest.raises(
        EngineError, match=r"rollouts.url=http://127.0.0.1:9: the server does not answer \(ConnectError"
    ):
        client.about()


def test_a_model_that_is_not_served(base: BaseLM, serve: ServerFor) -> None:
    client = EngineClient(serve().url + "/v1", "large")
    with pytest.raises(EngineError, match=r"rollouts\.served_model=large: the server has tiny"):
        client.about()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollouts.url=http://x"], "rollouts.url=http://x: ignored, it belongs to rollouts.engine=openai"),
        (["rollouts.engine=openai", "targets.weights=importance"], "name the server"),
        (["rollouts.engine=openai", "rollouts.url=localhost", "targets.weights=balance"], "begins with http"),
        (["rollouts.engine=openai", "rollouts.url=http://x"], "set targets.weights=importance"),
        (["rollouts.engine=openai", "rollouts.url=http://x", "rollouts.top_k=5"], "rollouts.top_k=5.*leave it at 0"),
    ],
)
def test_settings_that_do_not_fit(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loader.load("quickstart", words)


def test_a_run_from_a_server(tmp_path: Path, command: Callable, serve: ServerFor) -> None:
    """The exact world's base on a server: the run trains, and repeats when the server is gone."""
    from datamodules.tasks import build_task
    from engine.restoring import build_base

    words = [
        "method=nado",
        "optim.steps=4",
        "rollouts.per_prompt=256",
        "eval.rollouts_per_prompt=64",
        "rollouts.engine=openai",
        "targets.weights=importance",
        "trainer.progress=false",
        f"data.cache={tmp_path / 'cache'}",
        f"runs={tmp_path / 'runs'}",
        "logging.wandb=off",
    ]
    config = loader.load("exact_world", [*words, "rollouts.url=http://x"]).config
    build_task(config)
    world = build_base(config)
    with EngineServer(world) as server:
        words.append(f"rollouts.url={server.url}")
        result = command(train, "exact_world", *words)
        assert result.code == 0, result.err
    again = command(train, "exact_world", *words)
    assert again.code == 0, again.err
