"""A base in parts on two processes: the same run as with a whole one on each, bit for bit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from commands import Result, process
from helpers import tiny_llama

from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_markov, build_word_tokenizer
from dinado.bases.sharding import shard_base
from dinado.errors import UserError

pytestmark = pytest.mark.ddp

COMMON = (
    "task.name=jsonl data.train_prompts=0 data.val_prompts=3 rollouts.max_new_tokens=6 "
    "rollouts.per_prompt=8 rollouts.truncated=score rollouts.block_size=1 oracle.name=regex oracle.pattern=2 "
    "optim.batch_size=16 optim.steps=8 eval.samples_per_prompt=4 trainer.accelerator=cpu trainer.progress=false "
    "trainer.log_every=1 trainer.val_every=3 trainer.checkpoint_every=5 trainer.devices=2"
)
LORA = "adapters, recomputed layers"
CASES = {
    "network": "method=nado data.states=off",
    LORA: "method=dinado_hard parameters=lora trainer.checkpointing=true",
    "rounds, dropout, the norm head first": "method=dinado_merge optim.norm_steps=3 rollouts.rounds=2 "
    "targets.weights=balance lora.dropout=0.1",
}


@dataclass
class Run:
    """What a run left."""

    result: Result
    folder: Path

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    @property
    def rollouts(self) -> dict[Path, bytes]:
        here = self.folder.parents[2] / "cache"
        return {file.relative_to(here): file.read_bytes() for file in here.glob("rollouts/**/*.arrow")}

    @property
    def numbers(self) -> list[dict[str, float]]:
        """Everything logged but times and memory."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if not key.startswith("perf/")} for line in lines
        ]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama, and prompts of several lengths, so that batches take passes of several numbers."""
    folder = tmp_path_factory.mktemp("sharding")
    tiny_llama(12).save_pretrained(folder / "model")
    build_word_tokenizer(12).save_pretrained(folder / "model")
    prompts = [json.dumps({"prompt": f"{i} {j}" + " 4" * (i - 3)}) for i in (3, 4, 5) for j in (6, 7, 8)]
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    return folder


@pytest.fixture(scope="module")
def run(case: Path) -> Callable[[str, bool], Run]:
    """One of the cases, with a whole base on each process or with parts of one; each runs once."""

    @cache
    def start(name: str, parts: bool) -> Run:
        where = case / f"{name}, {'parts' if parts else 'whole'}"
        words = [*COMMON.split(), *CASES[name].split(), f"base.name={case}/model", f"task.path={case}/prompts.jsonl"]
        words += [f"data.cache={where}/cache", f"runs={where}/runs", *(["trainer.shard_base=true"] if parts else [])]
        result = process("train.py", "quickstart", *words)
        assert result.code == 0, result.err
        (folder,) = where.glob("runs/quickstart/*")
        return Run(result, folder)

    return start


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_base_in_parts_changes_no_bit(name: str, run: Callable[[str, bool], Run]) -> None:
    """Rollouts, steps, held-out numbers and texts: both processes go through the base in step, or one would hang."""
    whole, parts = run(name, False), run(name, True)
    assert whole.rollouts == parts.rollouts
    assert whole.weights.keys() == parts.weights.keys()
    assert all(torch.equal(value, parts.weights[key]) for key, value in whole.weights.items())
    assert whole.numbers == parts.numbers
    texts = [(one.folder / "samples" / "after.jsonl").read_text() for one in (whole, parts)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_each_process_says_what_it_holds(run: Callable[[str, bool], Run]) -> None:
    """Half of the layers; embeddings and output head are whole."""
    out = run(LORA, True).result.out
    (line,) = [line for line in out.splitlines() if line.startswith("each process holds")]
    held, total = (float(number) for number in re.findall(r"([\d.]+) MB", line))
    model = tiny_llama(12)
    layers = sum(p.nbytes for p in model.model.layers.parameters())
    assert layers > 0.8 * sum(p.nbytes for p in model.parameters()), "there is something to share out"
    assert total - held == pytest.approx(layers / 2 / 1e6, abs=0.1)


@pytest.mark.slow
def test_it_goes_on_from_a_checkpoint(run: Callable[[str, bool], Run]) -> None:
    straight = run(LORA, True)
    expected = straight.weights
    again = process("train.py", "--resume", str(straight.folder / "checkpoints" / "previous.ckpt"))
    assert again.code == 0, again.err
    assert all(torch.equal(value, expected[key]) for key, value in straight.weights.items())
    assert straight.numbers[-1]["step"] == 8


@pytest.mark.slow
def test_one_process_evaluates_it_with_a_whole_base(run: Callable[[str, bool], Run]) -> None:
    parts = run(LORA, True)
    again = process("evaluate.py", str(parts.folder), "--json")
    assert again.code == 0, again.err
    assert again.json["val/success"] == pytest.approx(parts.numbers[-1]["val/success"])
    assert again.json["val/kl_to_optimum"] == pytest.approx(parts.numbers[-1]["val/kl_to_optimum"], rel=1e-4)


def test_a_model_without_layers_cannot_be_shared_out() -> None:
    with pytest.raises(UserError, match=r"no transformer layers; set trainer.shard_base=false"):
        shard_base(BaseLM(*build_markov(5, seed=3)), 2, torch.device("cpu"))
