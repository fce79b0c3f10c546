"""Memory that a training step adds to the model, compared with a plain implementation of the same step.

    python benchmarks/memory.py
    python benchmarks/memory.py --base llama-1b --device cuda --dtype bfloat16

Each path runs in its own process. The number is the peak of its resident memory over one step of gradients, above the
memory that it holds with the model, the batch and the base's states; medians of --repeats. On a GPU it is the memory
that torch has allocated there.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing
from benchmarks.case import Place, Size, build, loss_of, make_batch, with_recorded, with_size
from benchmarks.plain import plain_loss
from benchmarks.train_step import METHODS


def main() -> int:
    """Measure both implementations and print the comparison."""
    arguments, size, place = with_size(timing.parser(__doc__))
    repeats, threads = arguments.repeats, arguments.threads
    rows, numbers = [], {}
    for short, name in METHODS.items():
        seen = [
            [timing.peak_mb(partial(step, name, size, place, plain=way), threads, place.device) for _ in range(repeats)]
            for way in (True, False)
        ]
        built = statistics.median(model for model, _ in seen[0])
        plain, ours = (statistics.median(added for _, added in way) for way in seen)
        numbers[f"memory_ratio_{short}"] = ours / plain
        rows.append({"method": name, "model, MB": built, "plain adds, MB": plain, "ours adds, MB": ours})
    timing.show([row | {"ratio": ratio} for row, ratio in zip(rows, numbers.values(), strict=True)])
    return timing.finish(numbers, arguments.json)


def step(name: str, size: Size, place: Place, *, plain: bool) -> Callable[[], object]:
    """Build a model and return one step of gradients."""
    method, batch = build(name, size, place), make_batch(size).to(place.device)
    batch = batch if plain else with_recorded(method, batch)
    loss = plain_loss if plain else loss_of
    return lambda: loss(method, batch).backward()


if __name__ == "__main__":
    sys.exit(main())
