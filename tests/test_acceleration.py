"""Compiled and recomputed layers, and lower precision: the same training, in less memory or time."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import base_lm, batch_of, exact_gpt2_words, tiny_llama
from test_exact_training import outcome
from torch import Tensor

from dinado.bases.acceleration import checkpoint_layers, compile_layers, decoder_layers
from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_markov, build_word_tokenizer
from dinado.errors import UserError
from dinado.objectives.vocabulary import VocabularyStatistics
from dinado.parameters.full import Full
from dinado.parameters.lora import Lora
from dinado.parameters.parameterisation import NOTHING_MORE, Needs
from dinado.parameters.policy import Policy
from engine.session import train
from workbench.run_folder import RunFolder
from workbench.settings import loader

NEEDS = Needs(maximum=True, taps=(0.5,), of_policy=True)

FEW = ["rollouts.per_prompt=100", "targets.positives_share=0"]
"""So few rollouts that a step could not hold its share of accepted ones."""


def policy(name: str, kind: str) -> Policy:
    base = base_lm(name)
    scores = (
        Full.inject(base, link="identity", seed=0)
        if kind == "full"
        else Lora.inject(base, link="identity", r=2, alpha=4.0, dropout=0.0, targets="all-linear", seed=0)
    )
    with torch.no_grad():
        for index, parameter in enumerate(p for p in scores.policy.model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return scores


def outcome_of(scores: Policy, needs: Needs = NEEDS) -> tuple[VocabularyStatistics, list[Tensor]]:
    """Statistics and gradients; prompts are of different lengths and shared by rollouts."""
    found = scores(batch_of(scores.base), needs).statistics
    total = sum((field.square().sum() for field in found if field is not None), torch.zeros(()))
    return found, list(torch.autograd.grad(total, [p for p in scores.policy.model.parameters() if p.requires_grad]))


def saved_elements(compute: Callable[[], object]) -> int:
    sizes: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    assert result is not None
    return sum(sizes.values())


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_recomputing_changes_no_number_and_saves_memory(name: str, kind: str) -> None:
    plain, recomputed = policy(name, kind), policy(name, kind)
    checkpoint_layers(recomputed.policy)
    (statistics, gradients), (found, again) = outcome_of(plain), outcome_of(recomputed)
    for a, b in zip((*statistics[:4], *gradients), (*found[:4], *again), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    before, after = (saved_elements(lambda s=s: s(batch_of(s.base), NEEDS)) for s in (plain, recomputed))
    assert after < 0.7 * before


def test_recomputing_draws_the_same_dropout(tmp_path: Path) -> None:
    words = ["method=dinado_merge", "parameters=lora", "lora.dropout=0.2", "optim.steps=12", *FEW]
    kept = outcome(tmp_path, "exact_gpt2", *words)
    again = outcome(tmp_path, "exact_gpt2", *words, "trainer.checkpointing=true")
    for name in ("train/loss", "val/kl_to_optimum", "norm/adapter_fro"):
        assert again[name] == pytest.approx(kept[name], rel=1e-4)


def test_a_base_without_layers() -> None:
    model, _ = build_markov(5, seed=0)
    assert not decoder_layers(model)
    with pytest.raises(UserError, match=r"trainer\.checkpointing"):
        checkpoint_layers(model)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_give_the_same_numbers() -> None:
    torch.compiler.reset()
    plain, compiled = policy("llama", "lora"), policy("llama", "lora")
    compile_layers(compiled)
    (statistics, gradients), (found, again) = (outcome_of(scores, NOTHING_MORE) for scores in (plain, compiled))
    for a, b in zip((*statistics[:3], *gradients), (*found[:3], *again), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dinado_soft", "dinado_merge"])
def test_runs_with_compiled_layers_are_the_same(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of a base and of the network beside it, each with its own cache."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    found = []
    for how in ("false", "true"):
        words = exact_gpt2_words(tmp_path, f"method={method}", "data.states=off", f"trainer.compile={how}")
        loaded = loader.load("exact_world", words)
        with RunFolder.create(loaded, words) as folder:
            found.append(train(loaded.config, folder, resume=False, quiet=True).metrics)
    plain, compiled = found
    assert compiled["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-4)
    assert compiled["val/kl_to_optimum"] == pytest.approx(plain["val/kl_to_optimum"], rel=1e-4)


@pytest.mark.slow
def test_layers_of_a_kind_share_their_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a deep model would have more of them than torch keeps, and most of its layers would run uncompiled."""

    def graphs(layers: int) -> int:
        torch.compiler.reset()
        traced: list[object] = []

        def count(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
            traced.append(graph)
            return graph.forward

        base = BaseLM(tiny_llama(8, num_hidden_layers=layers), build_word_tokenizer(8))
        scores = Lora.inject(base, link="identity", r=2, alpha=4.0, dropout=0.0, targets="all-linear", seed=0)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "compile", functools.partial(torch.compile, backend=count))
            compile_layers(scores)
        with torch.no_grad():
            scores(batch_of(base), NEEDS)
        return len(traced)

    assert 0 < graphs(2) == graphs(5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dinado_soft", "dinado_merge"])
def test_mixed_precision_trains_about_the_same(tmp_path: Path, method: str) -> None:
    words = [f"method={method}", "optim.steps=60", "optim.lr=3e-3", *FEW, "rollouts.per_prompt=400"]
    full = outcome(tmp_path, "exact_gpt2", *words)
    mixed = outcome(tmp_path, "exact_gpt2", *words, "trainer.precision=bf16-mixed")
    assert mixed["val/gap_closed"] == pytest.approx(full["val/gap_closed"], abs=0.1)
    assert mixed["train/loss"] == pytest.approx(full["train/loss"], rel=0.1)


def test_a_profile_is_written(tmp_path: Path) -> None:
    outcome(tmp_path, "exact_gpt2", "method=nado", "optim.steps=2", *FEW, "trainer.profiler=simple")
    (file,) = tmp_path.glob("runs/*/*/fit-profile.txt")
    assert "run_training_batch" in file.read_text()
