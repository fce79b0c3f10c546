"""Throughput of controlled sampling in tokens per second, as a share of the base's.

    python benchmarks/decoding.py
    python benchmarks/decoding.py --base gpt2-like     a random 6-layer GPT-2, nothing to download
    python benchmarks/decoding.py --base llama-1b --device cuda --dtype bfloat16

NADO and Soft run an oracle network beside the base, with the default settings of the real-model experiments; Merge is
one model, with its adapters folded into the weights. All use the same sampler, prompts and number of tokens.
"""

from __future__ import annotations

import copy
import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import timing
from benchmarks.case import with_base
from benchmarks.sampling import K, prompts
from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.control.controlled_lm import ControlledLM
from dinado.parameters.lora import Lora
from dinado.parameters.network import Network
from dinado.rollouts.sampler import sample, uniforms

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 47, 24
NETWORK = {
    "layers": 2,
    "width": 256,
    "heads": 4,
    "taps": [0.0, 0.33, 0.67, 1.0],
    "head": "tied",
    "pointer": True,
    "seed": 0,
}


def main() -> int:
    """Measure the throughput of all models and print it."""
    arguments, base = with_base(timing.parser(__doc__))
    adapted = copy.deepcopy(base)
    adapters = Lora.inject(adapted, link="identity", r=16, alpha=32.0, dropout=0.0, targets="all-linear", seed=0)
    adapted.to(base.device)
    adapters.fold()
    models = {
        "base": base.model,
        "nado": ControlledLM(Network.inject(base, link="logsigmoid", **NETWORK).to(base.device)),  # type: ignore[arg-type]
        "soft": ControlledLM(Network.inject(base, link="identity", **NETWORK).to(base.device)),  # type: ignore[arg-type]
        "merge": adapted.model,
    }
    ids_PS = prompts(base, PROMPTS, PROMPT_TOKENS)
    seconds = timing.alternate(
        {name: partial(draw, Decoder(model), base, ids_PS) for name, model in models.items()},
        arguments.repeats,
    )
    tokens = PROMPTS * K * NEW_TOKENS
    numbers = {f"decode_ratio_{name}": timing.ratio(seconds["base"], seconds[name]) for name in list(models)[1:]}
    timing.show(
        [
            {"model": name, "tokens/s": tokens / statistics.median(seconds[name]), "of the base's": share}
            for name, share in zip(models, (1.0, *numbers.values()), strict=True)
        ]
    )
    return timing.finish(numbers, arguments.json)


def draw(decoder: Decoder, base: BaseLM, ids_PS: torch.Tensor) -> object:
    """Sample K responses to each prompt, none of which ends early."""
    uniform_NT = uniforms(range(len(ids_PS)), K, NEW_TOKENS, "benchmark")
    return sample(decoder, ids_PS, torch.ones_like(ids_PS), (), uniform_NT)


if __name__ == "__main__":
    sys.exit(main())
