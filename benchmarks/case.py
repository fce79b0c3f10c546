"""The model and batches of the speed benchmarks: a random GPT-2 of chosen size, and rollouts like CommonGen's.

Axes: P prompts, K rollouts each, T response tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from dinado.bases.catalogue import resolve_base
from dinado.bases.causal import BaseLM
from dinado.bases.frozen_states import frozen_states
from dinado.bases.markov import build_word_tokenizer
from dinado.batch import RecordedStates, RolloutBatch
from dinado.errors import UserError
from lightning_modules.build_method import build_method
from lightning_modules.rollout_method import RolloutMethod
from workbench.settings.config import Config
from workbench.settings.derived import depths_read


@dataclass(frozen=True)
class Size:
    """The sizes of the model and of a step's batch."""

    vocabulary: int = 50_257
    layers: int = 6
    width: int = 384
    prompt: int = 40
    shortest: int = 10
    longest: int = 25
    prompts: int = 4
    per_prompt: int = 8

    @property
    def rows(self) -> int:
        """Number of rollouts in a step."""
        return self.prompts * self.per_prompt


def build_base(size: Size) -> BaseLM:
    """Build a GPT-2 with random weights."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=size.vocabulary,
        n_positions=max(128, size.prompt + size.longest),
        n_embd=size.width,
        n_layer=size.layers,
        n_head=max(1, size.width // 64),
        bos_token_id=0,
        eos_token_id=0,
    )
    return BaseLM(GPT2LMHeadModel(config), build_word_tokenizer(size.vocabulary))


def with_base(options: argparse.ArgumentParser) -> tuple[argparse.Namespace, BaseLM]:
    """Parse the command line and load the base that it names; exit with one line and code 2 if that fails."""
    options.add_argument("--base", default="smollm2-135m-instruct", help="a base by name or path, or gpt2-like")
    options.add_argument("--cache", default="cache", help="folder of converted models")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.base == "gpt2-like":
        return arguments, build_base(Size())
    try:
        return arguments, BaseLM.load(resolve_base(arguments.base, arguments.cache))
    except UserError as error:
        options.error(str(error))


def build(name: str, size: Size) -> RolloutMethod:
    """Build NADO, Soft or Merge with the published normaliser and a network that is small beside the base."""
    config = Config()
    config.method = name
    config.parameters = "auto"
    config.objective.norm.kind = "linf"
    config.network.head = "tied"
    method = build_method(config, build_base(size)).train()
    with torch.no_grad():  # away from the zero initialisation, where all scores are equal
        for parameter in method.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.02)
    return method


def make_batch(size: Size) -> RolloutBatch:
    """Build a batch of prompts of one length and responses of uniform lengths; every third rollout is accepted."""
    stream = torch.Generator().manual_seed(1)

    def tokens(length: int) -> list[int]:
        return torch.randint(1, size.vocabulary, (length,), generator=stream).tolist()

    prompts = torch.tensor([tokens(size.prompt) for _ in range(size.prompts)])
    lengths = torch.randint(size.shortest, size.longest + 1, (size.rows,), generator=stream).tolist()
    prompt_of = [row // size.per_prompt for row in range(size.rows)]
    batch = RolloutBatch.unjudged(prompts, torch.ones_like(prompts), prompt_of, [tokens(n) for n in lengths])
    score_B = (torch.arange(size.rows) % 3 == 0).float()
    return dataclasses.replace(batch, score_B=score_B, weight_total=float(size.rows))


@torch.no_grad()
def with_recorded(method: RolloutMethod, batch: RolloutBatch) -> RolloutBatch:
    """Return the batch as it comes from a store that keeps the base's states."""
    base = method.base
    layers = tuple(sorted({base.layer(depth) for depth in depths_read(method.config)}))
    states = frozen_states(base, batch, [layer / base.num_layers for layer in layers])
    recorded = RecordedStates(layers, torch.stack(states.prompt_taps, 2), torch.stack(states.response_taps, 2))
    return dataclasses.replace(batch, recorded=recorded)


def loss_of(method: RolloutMethod, batch: RolloutBatch) -> torch.Tensor:
    """Compute the loss as in training."""
    return (method.terms(batch).loss_B * batch.weight_B).sum() / batch.weight_total
