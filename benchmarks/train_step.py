"""Throughput of a training step in response tokens per second, compared with a plain implementation of it.

    python benchmarks/train_step.py                    a 6-layer GPT-2 with 50,257 tokens, 32 rollouts a step
    python benchmarks/train_step.py --scaling          cost against vocabulary, response length, K and model size
    python benchmarks/train_step.py --base llama-1b --device cuda --dtype bfloat16

Both take a whole optimiser step with the same loss (the plain implementation is benchmarks/plain.py). *of the limit* is
the time that the matrix products of the step would take alone, at the rate of a product of these shapes measured in the
same turns, divided by the time that the step takes.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import timing
from benchmarks.case import Place, Size, build, loss_of, make_batch, with_recorded, with_size
from benchmarks.plain import plain_loss
from dinado.batch import RolloutBatch
from dinado.parameters.policy import Policy
from lightning_modules.rollout_method import RolloutMethod

METHODS = {"soft": "dinado_soft", "merge": "dinado_merge", "nado": "nado"}
GEMM_ROWS = 512
SCALES = {
    "vocabulary": [Size(vocabulary=v) for v in (12_500, 25_000, 50_000)],
    "response tokens": [Size(shortest=t, longest=t) for t in (12, 24, 48)],
    "K": [Size(per_prompt=k) for k in (4, 8, 16)],
    "model width": [Size(width=w) for w in (192, 384, 768)],
}


def main() -> int:
    """Measure both implementations, or the scaling of ours, and print the numbers."""
    options = timing.parser(__doc__)
    options.add_argument("--scaling", action="store_true", help="sizes instead of the other side")
    arguments, size, place = with_size(options)
    if arguments.scaling:
        return scaling(arguments.repeats, arguments.json, place)
    rows, numbers = [], {}
    for short, name in METHODS.items():
        row, found = compare(short, name, size, place, arguments.repeats)
        rows.append(row)
        numbers |= found
    timing.show(rows)
    return timing.finish(numbers, arguments.json)


def compare(
    short: str, name: str, size: Size, place: Place, repeats: int
) -> tuple[dict[str, object], dict[str, float]]:
    """Compare both implementations of one method."""
    method, batch = build(name, size, place), make_batch(size).to(place.device)
    recorded = with_recorded(method, batch)
    with torch.no_grad():
        plain, ours = float(plain_loss(method, batch)), float(loss_of(method, recorded))
    allowed = 1e-3 if place.dtype == torch.float32 else 0.05 * abs(plain)
    assert abs(plain - ours) < allowed, f"the two paths disagree: {plain} and {ours}"
    seconds = timing.alternate(
        {
            "plain": step(method, batch, plain_loss),
            "running the base": step(method, batch, loss_of),
            "reading its states": step(method, recorded, loss_of),
            "gemm": timing.gemm_seconds(GEMM_ROWS, size.width, size.vocabulary, place.device, place.dtype),
        },
        repeats,
    )
    tokens = int(batch.response_mask_BT.sum())
    rate = 2 * GEMM_ROWS * size.width * size.vocabulary / statistics.median(seconds["gemm"])
    limit_s = sum(2 * math.prod(shape) for shape in products(method, recorded)) / rate
    fast = seconds["reading its states"]
    speedup, share = timing.ratio(seconds["plain"], fast), limit_s / statistics.median(fast)
    row = {
        "method": name,
        **{f"{path}, tokens/s": tokens / statistics.median(seconds[path]) for path in list(seconds)[:3]},
        "speed-up": speedup,
        "of the limit": share,
        "GFLOP/s of products alone": rate / 1e9,
    }
    return row, {f"speedup_{short}": speedup, f"limit_share_{short}": share}


def step(
    method: RolloutMethod, batch: RolloutBatch, loss: Callable[[RolloutMethod, RolloutBatch], torch.Tensor]
) -> Callable[[], object]:
    """Return a function that takes one optimiser step: forward, backward, update."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-6)

    def run() -> None:
        optimizer.zero_grad()
        loss(method, batch).backward()
        optimizer.step()

    return run


def products(method: RolloutMethod, batch: RolloutBatch) -> Iterator[tuple[int, int, int]]:
    """Yield the shapes of the matrix products that a step cannot do without; attention's own are left out.

    States of the frozen base are given, so a network needs its own products and a policy those of one model: forward,
    and backward with respect to the activations and the trained weights. Every response token is multiplied with the
    vocabulary once for p, once for the scores, and once for their derivative.
    """
    base, tokens = method.base, int(batch.response_mask_BT.sum())
    width, vocabulary = base.hidden_size, base.vocab_size
    read = int(batch.prompt_mask_PS.sum()) + tokens - batch.num_rows
    if isinstance(method.scores, Policy):
        linear = [
            p
            for n, p in base.model.base_model.named_parameters()
            if p.ndim == 2 and "lora_" not in n and "wpe" not in n
        ]
        yield from ((2 * read, *shape.shape) for shape in linear if max(shape.shape) <= 4 * width)
        yield from ((3 * read, *p.shape) for n, p in base.model.named_parameters() if "lora_" in n)
    else:
        yield from ((3 * read, *p.shape) for p in method.scores.network.parameters() if p.ndim == 2)
    yield 3 * tokens, width, vocabulary


def scaling(repeats: int, as_json: bool, place: Place) -> int:
    """Measure the seconds of a step at three sizes, and the exponent with which they grow."""
    rows, numbers = [], {}
    for what, sizes in SCALES.items():
        for short, name in METHODS.items():
            steps, amounts = {}, []
            for size in sizes:
                method, batch = build(name, size, place), make_batch(size).to(place.device)
                recorded = with_recorded(method, batch)
                amount = {"vocabulary": size.vocabulary, "K": size.per_prompt, "model width": size.width}
                amounts.append(amount.get(what, size.longest))
                steps[str(amounts[-1])] = step(method, recorded, loss_of)
            seconds = {key: statistics.median(values) for key, values in timing.alternate(steps, repeats).items()}
            exponent = timing.growth(amounts, list(seconds.values()))
            measured = ", ".join(f"{key}: {value * 1000:.0f} ms" for key, value in seconds.items())
            rows.append({"grows with": what, "method": name, "a step": measured, "exponent": exponent})
            numbers[f"exponent_{what.replace(' ', '_')}_{short}"] = exponent
    timing.show(rows)
    return timing.finish(numbers, as_json)


if __name__ == "__main__":
    sys.exit(main())
