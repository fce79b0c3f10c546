"""Throughput of the sampler in rollouts per second, compared with ``generate(num_return_sequences=K)`` of transformers.

    python benchmarks/sampling.py                      SmolLM2-135M-Instruct, 8 prompts, K = 16, 24 new tokens
    python benchmarks/sampling.py --base gpt2-like     a random 6-layer GPT-2, nothing to download
    python benchmarks/sampling.py --base llama-1b --device cuda --dtype bfloat16
    python benchmarks/sampling.py --scaling            cost against K, new tokens and prompt length

``generate`` samples one prompt at a time from the same distribution, and scores its tokens afterwards with one more
pass, since rollouts need their log-probabilities; our sampler records them while sampling. Two more lines give the cost
of the base's hidden states, kept while sampling or computed in a pass afterwards. The share of the limit is the time of
the matrix products alone, at the rate of a product of these shapes measured in the same turns, divided by the time of
sampling.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import timing
from benchmarks.case import with_base
from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.batch import RolloutBatch
from dinado.rollouts.sampler import sample, uniforms

PROMPTS, PROMPT_TOKENS, K, NEW_TOKENS = 8, 47, 16, 24
DEPTHS = (0.0, 0.5, 1.0)
"""Depths of the hidden states that are kept: embeddings, middle, last."""


def main() -> int:
    """Measure both samplers, or the scaling of ours, and print the numbers."""
    options = timing.parser(__doc__)
    options.add_argument("--scaling", action="store_true", help="sizes instead of the other side")
    arguments, base = with_base(options)
    if arguments.scaling:
        return scaling(base, arguments.repeats, arguments.json)
    return compare(base, arguments.repeats, arguments.json)


def compare(base: BaseLM, repeats: int, as_json: bool) -> int:
    """Compare both samplers; every rollout is as long as the budget, so that both do the same work."""
    ids_PS = prompts(base, PROMPTS, PROMPT_TOKENS)
    rows = PROMPTS * K
    seconds = timing.alternate(
        {
            "generate": lambda: plain(base, ids_PS, K, NEW_TOKENS),
            "ours": ours(base, ids_PS, K, NEW_TOKENS),
            "ours, keeping states": ours(base, ids_PS, K, NEW_TOKENS, [base.layer(depth) for depth in DEPTHS]),
            "states afterwards": states_afterwards(base, ids_PS, K, NEW_TOKENS),
            "gemm": timing.gemm_seconds(rows, base.hidden_size, base.vocab_size, str(base.device), base.model.dtype),
        },
        repeats,
    )
    rate = 2 * rows * base.hidden_size * base.vocab_size / statistics.median(seconds["gemm"])
    embedded = {id(m.weight) for m in base.model.modules() if isinstance(m, torch.nn.Embedding)}
    linear = sum(p.numel() for p in base.model.base_model.parameters() if p.ndim == 2 and id(p) not in embedded)
    read = ids_PS.numel() + rows * (NEW_TOKENS - 1)
    flops = 2 * (read * linear + (PROMPTS + rows * (NEW_TOKENS - 1)) * base.hidden_size * base.vocab_size)
    speedup = timing.ratio(seconds["generate"], seconds["ours"])
    share = flops / rate / statistics.median(seconds["ours"])
    timing.show(
        [
            {
                "path": name,
                "rollouts/s": rows / statistics.median(seconds[name]),
                "tokens/s": rows * NEW_TOKENS / statistics.median(seconds[name]),
            }
            for name in seconds
            if name != "gemm"
        ]
    )
    numbers = {
        "sampling_speedup": speedup,
        "sampling_limit_share": share,
        "states_on_the_way": timing.ratio(seconds["ours, keeping states"], seconds["ours"]) - 1,
        "states_afterwards": timing.ratio(seconds["states afterwards"], seconds["ours"]),
    }
    return timing.finish(numbers, as_json)


def ours(
    base: BaseLM, ids_PS: torch.Tensor, per_prompt: int, new_tokens: int, layers: Sequence[int] = ()
) -> Callable[[], object]:
    """Return a function that samples all prompts at once, without early ends, and keeps states of ``layers``."""
    decoder = Decoder(base.model, base.temperature, layers)

    def run() -> object:
        uniform_NT = uniforms(range(len(ids_PS)), per_prompt, new_tokens, "benchmark")
        return sample(decoder, ids_PS, torch.ones_like(ids_PS), (), uniform_NT)

    return run


def states_afterwards(base: BaseLM, ids_PS: torch.Tensor, per_prompt: int, new_tokens: int) -> Callable[[], object]:
    """Return a function that computes states in one pass over finished texts, every prompt read once."""
    rows = len(ids_PS) * per_prompt
    tokens = torch.randint(3, base.vocab_size, (rows, new_tokens), generator=torch.Generator().manual_seed(3))
    prompt_of = torch.arange(len(ids_PS)).repeat_interleave(per_prompt).tolist()
    batch = RolloutBatch.unjudged(ids_PS, torch.ones_like(ids_PS), prompt_of, tokens.tolist())
    return lambda: base.states(batch, DEPTHS)


@torch.no_grad()
def plain(base: BaseLM, ids_PS: torch.Tensor, per_prompt: int, new_tokens: int) -> list[torch.Tensor]:
    """Sample one prompt at a time, then compute log-probabilities in one more pass."""
    found = []
    for ids_1S in ids_PS.split(1):
        out = base.model.generate(
            ids_1S,
            attention_mask=torch.ones_like(ids_1S),
            do_sample=True,
            temperature=base.temperature,
            top_k=0,
            top_p=1.0,
            num_return_sequences=per_prompt,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=base.pad_id,
        )
        logits = base.model(out, use_cache=False).logits[:, ids_1S.shape[1] - 1 : -1].float() / base.temperature
        found.append(logits.log_softmax(-1).gather(-1, out[:, ids_1S.shape[1] :, None])[..., 0])
    return found


def prompts(base: BaseLM, count: int, length: int) -> torch.Tensor:
    """Draw random prompts ``[P, S]``."""
    ids_PS = torch.randint(3, base.vocab_size, (count, length), generator=torch.Generator().manual_seed(2))
    return ids_PS.to(base.device)


def scaling(base: BaseLM, repeats: int, as_json: bool) -> int:
    """Measure the seconds at three sizes, and the exponent with which they grow."""
    grids = {
        "K": [(PROMPT_TOKENS, k, NEW_TOKENS) for k in (4, 16, 64)],
        "new tokens": [(PROMPT_TOKENS, K, n) for n in (12, 24, 48)],
        "prompt tokens": [(s, K, NEW_TOKENS) for s in (24, 96, 384)],
    }
    rows, numbers = [], {}
    for place, (what, grid) in enumerate(grids.items()):
        amounts = [(point[1], point[2], point[0])[place] for point in grid]
        paths = {
            str(amount): ours(base, prompts(base, 2, length), per_prompt, new_tokens)
            for amount, (length, per_prompt, new_tokens) in zip(amounts, grid, strict=True)
        }
        seconds = {key: statistics.median(values) for key, values in timing.alternate(paths, repeats).items()}
        exponent = timing.growth(amounts, list(seconds.values()))
        measured = ", ".join(f"{key}: {value * 1000:.0f} ms" for key, value in seconds.items())
        rows.append({"grows with": what, "two prompts": measured, "exponent": exponent})
        numbers[f"exponent_{what.replace(' ', '_')}"] = exponent
    timing.show(rows)
    return timing.finish(numbers, as_json)


if __name__ == "__main__":
    sys.exit(main())
