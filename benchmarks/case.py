"""The model and batches of the speed benchmarks: a random GPT-2 or Llama of chosen size, and rollouts like CommonGen's.

Axes: P prompts, K rollouts each, T response tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

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
    """The sizes of the model and of a step's batch; ``inner`` is the width of a Llama's feed-forward layers."""

    family: Literal["gpt2", "llama"] = "gpt2"
    vocabulary: int = 50_257
    layers: int = 6
    width: int = 384
    inner: int = 0
    prompt: int = 40
    shortest: int = 10
    longest: int = 25
    prompts: int = 4
    per_prompt: int = 8

    @property
    def rows(self) -> int:
        """Number of rollouts in a step."""
        return self.prompts * self.per_prompt


SIZES = {
    "gpt2-like": Size(),
    "gpt2-large": Size(layers=36, width=1280, prompt=64, shortest=48, longest=96),
    "llama-1b": Size("llama", 128_256, 16, 2048, inner=8192, prompt=64, shortest=48, longest=96),
}
"""Random bases by name; the larger ones are for a GPU."""


@dataclass(frozen=True)
class Place:
    """The device of a benchmark and the type of the base's numbers."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32


def build_base(size: Size, place: Place = Place()) -> BaseLM:
    """Build a base with random weights."""
    torch.manual_seed(0)
    with torch.device(place.device):
        model = _model(size)
    return BaseLM(model.to(place.dtype), build_word_tokenizer(size.vocabulary))


def _model(size: Size) -> PreTrainedModel:
    positions, heads = max(128, size.prompt + size.longest), max(1, size.width // 64)
    if size.family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size.vocabulary,
                max_position_embeddings=positions,
                hidden_size=size.width,
                intermediate_size=size.inner,
                num_hidden_layers=size.layers,
                num_attention_heads=heads,
                num_key_value_heads=max(1, heads // 4),
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=0,
                pad_token_id=None,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size.vocabulary,
            n_positions=positions,
            n_embd=size.width,
            n_layer=size.layers,
            n_head=heads,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def placed(options: argparse.ArgumentParser) -> None:
    """Add the options that say where a benchmark runs."""
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to run (default cpu)")
    options.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="numbers of the base"
    )


def place_of(options: argparse.ArgumentParser, arguments: argparse.Namespace) -> Place:
    """Return where a benchmark runs; exit with one line and code 2 where there is no such device."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        options.error("--device cuda: there is no CUDA device that torch can use here")
    torch.set_num_threads(arguments.threads)
    return Place(arguments.device, getattr(torch, arguments.dtype))


def with_size(options: argparse.ArgumentParser) -> tuple[argparse.Namespace, Size, Place]:
    """Parse the command line of a benchmark that runs a random base."""
    options.add_argument("--base", default="gpt2-like", choices=tuple(SIZES), help="its size (default gpt2-like)")
    placed(options)
    arguments = options.parse_args()
    return arguments, SIZES[arguments.base], place_of(options, arguments)


def with_base(options: argparse.ArgumentParser) -> tuple[argparse.Namespace, BaseLM]:
    """Parse the command line and load the base that it names; exit with one line and code 2 if that fails."""
    options.add_argument(
        "--base", default="smollm2-135m-instruct", help=f"a base by name or path, or one of {', '.join(SIZES)}"
    )
    options.add_argument("--cache", default="cache", help="folder of converted models")
    placed(options)
    arguments = options.parse_args()
    place = place_of(options, arguments)
    if arguments.base in SIZES:
        return arguments, build_base(SIZES[arguments.base], place)
    try:
        base = BaseLM.load(resolve_base(arguments.base, arguments.cache), dtype=arguments.dtype)
    except UserError as error:
        options.error(str(error))
    return arguments, base.to(place.device)


def build(name: str, size: Size, place: Place = Place()) -> RolloutMethod:
    """Build NADO, Soft or Merge with the published normaliser and a network that is small beside the base."""
    config = Config()
    config.method = name
    config.parameters = "auto"
    config.objective.norm.kind = "linf"
    config.network.head = "tied"
    method = build_method(config, build_base(size, place)).to(place.device).train()
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
