"""Memory of one process by kind of training: weights, gradients, optimiser and activations, counted and measured.

    python benchmarks/model_memory.py                      SmolLM2-135M-Instruct
    python benchmarks/model_memory.py --base gpt2-like     a random GPT-2 of 30 million parameters

Numbers are in MB. Each kind has its own process, which builds the model, takes an AdamW step of 32 rollouts and reads
the peak of its resident memory over a second forward and backward pass: activations and gradients. Every number that is
not called measured is the size of the tensors themselves, which docs/cluster.md adds up. The benchmark needs Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing
from benchmarks.case import Size, loss_of, make_batch, with_base
from dinado.bases.causal import BaseLM
from lightning_modules.build_method import build_method
from workbench.settings.config import Config

KINDS = {
    "Soft, network": ("dinado_soft", "network"),
    "Merge, LoRA r=16": ("dinado_merge", "lora"),
    "Hard, LoRA r=16": ("dinado_hard", "lora"),
    "SFT, LoRA r=16": ("sft", "lora"),
    "SFT, full": ("sft", "full"),
    "Merge, full": ("dinado_merge", "full"),
}
MB = 2**20


def main() -> int:
    """Measure the memory of every kind and print it."""
    options = timing.parser(__doc__)
    options.set_defaults(repeats=1)
    arguments, base = with_base(options)
    rows, numbers = [], {}
    for label, (method, parameters) in KINDS.items():
        seen = [in_a_process(base, method, parameters, arguments) for _ in range(arguments.repeats)]
        row = {key: statistics.median(found[key] for found in seen) for key in seen[0]}
        rows.append({"": label, **row})
        numbers |= {f"{label}: {key}": value for key, value in row.items()}
    timing.show(rows)
    return timing.finish(numbers, arguments.json)


def in_a_process(base: BaseLM, method: str, parameters: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the result of :func:`measure` in its own process, since the peak of one process never falls."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(base, method, parameters, arguments.threads, sender))
    process.start()
    result: dict[str, float] = receiver.recv()
    process.join()
    return result


def measure(base: BaseLM, method: str, parameters: str, threads: int, sender: Any) -> None:
    """Send the size of each part and of the peak, in MB."""
    torch.set_num_threads(threads)
    config = Config()
    config.method, config.parameters = method, parameters  # type: ignore[assignment]
    config.objective.norm.kind, config.network.head = "mean", "tied"
    size = Size(vocabulary=base.vocab_size)
    frozen = tensors(base.model.parameters())
    batch = make_batch(size)
    for parameter in base.model.parameters():
        parameter.sum()  # weights mapped from a file are resident only after they have been read
    before = resident("VmRSS")
    trained = build_method(config, base).train()
    built = resident("VmRSS") - before
    weights = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights)
    loss_of(trained, batch).backward()
    gradients = tensors(weight.grad for weight in weights if weight.grad is not None)
    optimizer.step()
    state = tensors(value for slot in optimizer.state.values() for value in slot.values())
    optimizer.zero_grad()
    ctypes.CDLL(None).malloc_trim(0)  # returns memory freed by the first pass to the system
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the recorded peak
    loss_of(trained, batch).backward()
    sender.send(
        {
            "base": frozen,
            "trained, million": sum(weight.numel() for weight in weights) / 1e6,
            "own weights": tensors(trained.parameters()) - frozen,
            "(measured)": built,
            "optimiser": state,
            "gradients": gradients,
            "a pass adds, measured": resident("VmHWM") - before,
        }
    )


def tensors(found: Any) -> float:
    """Compute the size of tensors in MB, each storage counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    return sum(storages.values()) / MB


def resident(field: str) -> float:
    """Return the resident memory in MB, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    sys.exit(main())
