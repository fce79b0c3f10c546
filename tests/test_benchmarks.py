"""The speed benchmarks run, both sides of them, and name their numbers; how fast anything is is not tested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import exact_gpt2_words

from benchmarks import decoding, memory, model_memory, sampling, scaling, startup, timing, top_k, train_step
from benchmarks.case import SIZES, Size


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many as before: the benchmarks set their own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


TINY = partial(Size, vocabulary=61, layers=2, width=32, prompt=6, shortest=2, longest=5, prompts=2, per_prompt=2)


def numbers_of(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> dict[str, float]:
    """What a benchmark says on its last line."""
    monkeypatch.setattr("sys.argv", ["benchmark", "--repeats", "2", "--threads", "1", "--json", *words])
    assert benchmark.main() == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_training_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(SIZES, "gpt2-like", TINY())
    found = numbers_of(train_step, monkeypatch, capsys)
    assert found.keys() == {f"{what}_{m}" for what in ("speedup", "limit_share") for m in ("soft", "merge", "nado")}
    assert all(value > 0 for value in found.values())
    assert numbers_of(memory, monkeypatch, capsys).keys() == {f"memory_ratio_{m}" for m in ("soft", "merge", "nado")}


@pytest.mark.slow
def test_what_a_process_holds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A full copy, its gradients and two moments: the sizes that docs/cluster.md adds up."""
    monkeypatch.setattr(model_memory, "KINDS", {"full": ("sft", "full")})
    monkeypatch.setattr(model_memory, "Size", partial(Size, longest=12, prompts=1, per_prompt=2))
    found = numbers_of(model_memory, monkeypatch, capsys, "--base", "gpt2-like")
    assert found["full: own weights"] == found["full: gradients"] == pytest.approx(found["full: base"])
    assert found["full: optimiser"] == pytest.approx(2 * found["full: base"], rel=1e-3)
    assert found["full: a pass adds, measured"] > 0.9 * found["full: gradients"]


def test_sizes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train_step, "SCALES", {"model width": [TINY(width=w) for w in (16, 32, 64)]})
    found = numbers_of(train_step, monkeypatch, capsys, "--scaling")
    assert found.keys() == {f"exponent_model_width_{m}" for m in ("soft", "merge", "nado")}


def test_sampling_and_decoding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for benchmark in (sampling, decoding):
        for name, value in (("PROMPTS", 2), ("PROMPT_TOKENS", 5), ("NEW_TOKENS", 3), ("K", 2)):
            monkeypatch.setattr(benchmark, name, value)
    found = numbers_of(sampling, monkeypatch, capsys, "--base", "gpt2-like")
    assert found.keys() == {"sampling_speedup", "sampling_limit_share", "states_on_the_way", "states_afterwards"}
    found = numbers_of(decoding, monkeypatch, capsys, "--base", "gpt2-like")
    assert found.keys() == {f"decode_ratio_{m}" for m in ("nado", "soft", "merge")}


def test_likeliest_tokens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("PROMPTS", 2), ("NEW_TOKENS", 3), ("K", 2)):
        monkeypatch.setattr(top_k, name, value)
    found = numbers_of(top_k, monkeypatch, capsys, "--base", "gpt2-like")
    assert list(found) == [f"mass_outside_{k}" for k in (64, 256, 1024, 4096)]
    # A random model spreads its mass over all 50,257 tokens.
    assert 0.8 < found["mass_outside_4096"] < found["mass_outside_64"] < 1


@pytest.mark.slow
def test_startup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = numbers_of(startup, monkeypatch, capsys, "exact_world", *exact_gpt2_words(tmp_path, "method=nado"))
    assert found.keys() == {"training_s", "first_step_s", "help_s"}
    assert found["help_s"] < found["training_s"] < found["first_step_s"]
    with pytest.raises(SystemExit, match=r"ended before its first step:\nerror: command line: optim.stepz"):
        numbers_of(startup, monkeypatch, capsys, "exact_world", "optim.stepz=1")


def test_growth_is_the_exponent_of_a_power() -> None:
    amounts = [2.0, 4.0, 8.0]
    assert timing.growth(amounts, [3 * a**1.5 for a in amounts]) == pytest.approx(1.5)


@pytest.mark.slow
def test_two_processes_against_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scaling, "Size", TINY)
    tiny = scaling.SETTINGS.replace(f"optim.steps={scaling.STEPS}", "optim.steps=4").replace("=77", "=7")
    monkeypatch.setattr(scaling, "SETTINGS", tiny.replace("batch_size=64", "batch_size=16"))
    found = numbers_of(scaling, monkeypatch, capsys, "--repeats", "1")
    assert found.keys() == {"train_scaling", "sampling_scaling"} and all(value > 0 for value in found.values())
