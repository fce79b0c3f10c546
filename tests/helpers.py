"""Small models and batches that several tests build.

Axes: B responses, P prompts, S prompt tokens, T response tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_markov, build_word_tokenizer
from dinado.bases.tiny_gpt2 import build_tiny_gpt2
from dinado.batch import RolloutBatch
from dinado.control.oracle_network import OracleNetwork
from dinado.parameters.full import Full
from dinado.parameters.lora import Lora
from dinado.parameters.network import Network
from dinado.prompt import Prompt
from engine.checkpoints import read_checkpoint
from workbench.settings import loader, schema
from workbench.settings.config import Config
from workbench.settings.objective import ObjectiveSettings

BASES = ("llama", "gpt2", "markov")
PROMPTS = (Prompt("a", ""), Prompt("b", "3 1 2 5"), Prompt("c", "4 2"))
RESPONSES = ([1, 4, 0], [5, 5, 2, 3, 1, 0], [0], [2, 1])
"""Finished, finished, of one token, cut off."""
PROMPT_OF = (0, 1, 2, 1)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
"""Two layers whose weights are wide enough to be far from uniform."""


def tiny_llama(vocab_size: int = 50, seed: int = 0, **settings: object) -> LlamaForCausalLM:
    """A random Llama with grouped heads; settings other than those of ``SMALL`` by name."""
    config = LlamaConfig(**{"vocab_size": vocab_size, "num_key_value_heads": 2, **SMALL, **settings})  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def tiny_phi(vocab_size: int, seed: int) -> PhiForCausalLM:
    """A random two-layer Phi: its output layer has a bias."""
    config = PhiConfig(vocab_size=vocab_size, resid_pdrop=0.0, **SMALL)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PhiForCausalLM(config).eval()
        torch.nn.init.normal_(model.lm_head.bias)
    return model


def base_lm(name: str, vocab_size: int = 8, seed: int = 0, **settings: object) -> BaseLM:
    """One of :data:`BASES`."""
    if name == "llama":
        return BaseLM(tiny_llama(vocab_size, seed), build_word_tokenizer(vocab_size), **settings)  # type: ignore[arg-type]
    if name == "phi":
        return BaseLM(tiny_phi(vocab_size, seed), build_word_tokenizer(vocab_size), **settings)  # type: ignore[arg-type]
    build = build_tiny_gpt2 if name == "gpt2" else build_markov
    return BaseLM(*build(vocab_size, seed), **settings)  # type: ignore[arg-type]


def batch_of(
    base: BaseLM,
    prompts: Sequence[Prompt] = PROMPTS,
    responses: Sequence[Sequence[int]] = RESPONSES,
    prompt_of: Sequence[int] = PROMPT_OF,
) -> RolloutBatch:
    """Responses to some prompts as a batch, with log p on record and scores that alternate."""
    ids_PS, mask_PS = base.encode_prompts(prompts)
    rows, width = len(responses), max(map(len, responses))
    response_BT, mask_BT = torch.full((rows, width), base.pad_id), torch.zeros(rows, width, dtype=torch.long)
    for row, tokens in enumerate(responses):
        response_BT[row, : len(tokens)] = torch.tensor(tokens)
        mask_BT[row, : len(tokens)] = 1
    log_p_BT = torch.zeros(rows, width)
    for row, tokens in enumerate(responses):
        log_p_TV = plain_log_probs(base.model, prompt_tokens(base, prompts[prompt_of[row]]), tokens, base.temperature)
        log_p_BT[row, : len(tokens)] = log_p_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    one_B = torch.ones(rows)
    return RolloutBatch(
        prompt_ids_PS=ids_PS,
        prompt_mask_PS=mask_PS,
        prompt_of_row_B=torch.tensor(prompt_of),
        response_BT=response_BT,
        response_mask_BT=mask_BT,
        log_p_BT=log_p_BT,
        score_B=(torch.arange(rows) % 2).float(),
        weight_B=one_B,
        root_B=one_B / 2,
        weight_total=float(rows),
    )


def prompt_tokens(base: BaseLM, prompt: Prompt) -> list[int]:
    """What the base reads for a prompt, taken from the tokenizer."""
    return base.tokenizer(prompt.text)["input_ids"] or [0]


@torch.no_grad()
def plain_log_probs(
    model: nn.Module, prompt: Sequence[int], response: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """``[T, V]`` next-token log-probabilities at each token of one response: one sequence, no padding, no cache."""
    ids = torch.tensor([[*prompt, *response]])
    logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return (logits.float() / temperature).log_softmax(1)


def random_network(base: BaseLM, link: str = "logsigmoid", **settings: object) -> Network:
    """An oracle network whose zero-start weights have been moved off zero."""
    sizes = {
        "layers": 2,
        "width": 16,
        "heads": 2,
        "taps": [1.0],
        "head": "free",
        "pointer": False,
        "seed": 0,
    } | settings
    scores = Network.inject(base, link=link, **sizes)  # type: ignore[arg-type]
    network: OracleNetwork = scores.network
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.zero_start():
            parameter.copy_(torch.randn(parameter.shape, generator=stream))
    return scores.eval()


def random_lora(base: BaseLM, size: float = 0.3, **settings: object) -> Lora:
    """Adapters in the base that have been moved off zero."""
    sizes = {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear", "seed": 0} | settings
    scores = Lora.inject(base, link="identity", **sizes)  # type: ignore[arg-type]
    stream = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=stream) * size)
    return scores.eval()


def random_full(base: BaseLM, size: float = 0.1) -> Full:
    """A copy of the base, every weight of it moved."""
    scores = Full.inject(base, link="identity", seed=0)
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in scores.policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream) * size)
    return scores.eval()


def load_checkpoint(run: Path) -> dict[str, Any]:
    """A run's last checkpoint, checked."""
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


def exact_gpt2(folder: object, *overrides: str) -> Config:
    """The smallest exact world on a real transformer, everything it writes under ``folder``."""
    return loader.load("exact_world", exact_gpt2_words(folder, *overrides)).config


def exact_gpt2_words(folder: object, *overrides: str) -> list[str]:
    """The same as words of a command line after ``exact_world``."""
    return [
        f"data.cache={folder}/cache",
        f"runs={folder}/runs",
        "task.name=exact_gpt2",
        "task.vocab_size=5",
        "task.length=4",
        "task.required=[2]",
        "rollouts.max_new_tokens=4",
        "rollouts.per_prompt=64",
        "eval.rollouts_per_prompt=32",
        "eval.max_rollouts=32",
        "eval.samples_per_prompt=32",
        "optim.batch_size=16",
        "optim.rows_per_prompt=16",
        "optim.steps=6",
        "trainer.val_every=0",
        "trainer.log_every=1",
        "trainer.accelerator=cpu",
        "trainer.progress=false",
        *overrides,
    ]


def objective(start: ObjectiveSettings | None = None, **terms: object) -> ObjectiveSettings:
    """Objective settings with some of them changed, by the key of each in its block: ``path_loss``, ``token_ce``."""
    config = Config()
    if start is not None:
        config.objective = copy.deepcopy(start)
    for name, value in terms.items():
        key = schema.renamed().get(f"objective.{name}", f"objective.{name}")
        schema.put(config, key, value)
    return config.objective
