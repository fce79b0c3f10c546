"""The loss of accuracy if only the likeliest tokens of a frozen base's distributions were kept.

    python benchmarks/top_k.py                      SmolLM2-135M-Instruct along its own rollouts, K = 4 for 24 requests

A loss could be computed from the k likeliest tokens of each position instead of from hidden states. The mass outside
them bounds the error of E_p[R], since R lies in [0, 1]; a sampled token outside has no log p at all. An entry takes
four bytes (two for the token, two for the log-probability); a state takes two bytes per component in bfloat16.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import timing
from benchmarks.case import with_base
from benchmarks.decoding import NETWORK, PROMPT_TOKENS
from benchmarks.sampling import prompts
from datamodules.tasks.brief import source
from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.batch import RolloutBatch
from dinado.rollouts.sampler import sample, uniforms
from workbench.settings.data_settings import DataConfig
from workbench.settings.tasks import TaskConfig

PROMPTS, K, NEW_TOKENS = 24, 4, 28
SIZES = (64, 256, 1024, 4096)


def main() -> int:
    """Measure the mass outside the likeliest tokens and print it."""
    arguments, base = with_base(timing.parser(__doc__))
    if arguments.base == "gpt2-like":  # its tokenizer has numbers only
        ids_PS = prompts(base, PROMPTS, PROMPT_TOKENS)
        encoded = ids_PS, torch.ones_like(ids_PS)
    else:
        encoded = base.encode_prompts(source(TaskConfig(), DataConfig()).train[:PROMPTS])
    outside_KN, sampled_outside_KN = measure(base, *encoded)
    depths = len({base.layer(depth) for depth in (*NETWORK["taps"], 1.0)})
    rows = [
        {
            "kept": f"{k} likeliest",
            "bytes a position": 4 * k,
            "mass outside, mean": float(outside_N.mean()),
            "95 % of positions below": float(outside_N.quantile(0.95)),
            "sampled tokens outside": float(sampled_N.mean()),
        }
        for k, outside_N, sampled_N in zip(SIZES, outside_KN, sampled_outside_KN, strict=True)
    ]
    states = {"kept": f"states of {depths} depths", "bytes a position": 2 * depths * base.hidden_size}
    timing.show([*rows, states | dict.fromkeys(list(rows[0])[2:], 0.0)])
    numbers = {f"mass_outside_{k}": float(outside_N.mean()) for k, outside_N in zip(SIZES, outside_KN, strict=True)}
    return timing.finish(numbers, arguments.json)


@torch.no_grad()
def measure(base: BaseLM, ids_PS: torch.Tensor, mask_PS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the mass outside the k likeliest tokens, and whether the sampled token is outside, by k and position."""
    decoder = Decoder(base.model, base.temperature)
    samples = sample(decoder, ids_PS, mask_PS, base.eos_ids, uniforms(range(PROMPTS), K, NEW_TOKENS, "benchmark"))
    batch = RolloutBatch.unjudged(ids_PS, mask_PS, samples.prompt_of, samples.tokens)
    hidden_BTD, head = base.states(batch).hidden_BTD, base.head
    outside, sampled = [], []
    for hidden_TD, tokens in zip(hidden_BTD, samples.tokens, strict=True):
        p_TV, order_TV = head.logits(hidden_TD[: len(tokens)]).softmax(1).sort(1, descending=True)
        rank_T = (order_TV == torch.tensor(tokens)[:, None]).long().argmax(1)
        outside.append(torch.stack([p_TV[:, k:].sum(1) for k in SIZES]))
        sampled.append(torch.stack([(rank_T >= k).float() for k in SIZES]))
    return torch.cat(outside, 1), torch.cat(sampled, 1)


if __name__ == "__main__":
    sys.exit(main())
