"""Helpers of the speed benchmarks: alternating medians, the machine's rate of matrix products, tables, ``--json``."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def parser(description: str | None) -> argparse.ArgumentParser:
    """Build a parser with the options that every speed benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=whole, default=5, help="measurements of each path (default 5)")
    options.add_argument("--threads", type=whole, default=torch.get_num_threads(), help="CPU threads")
    options.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    return options


def whole(text: str) -> int:
    """Parse a number of repeats or threads; argparse turns the error into one line."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("give 1 or more")
    return value


def alternate(paths: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Measure the seconds of each path, in turns, so that a busy moment of the machine affects all of them."""
    for run in paths.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, run in paths.items():
            finish_kernels()
            started = time.perf_counter()
            run()
            finish_kernels()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def finish_kernels() -> None:
    """Wait until a GPU that is in use has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Compute the median over turns of slow / fast."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def growth(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    """Compute the exponent with which seconds grow with amounts: the slope of a line fitted to their logarithms."""
    return statistics.linear_regression([math.log(a) for a in amounts], [math.log(s) for s in seconds]).slope


def gemm_seconds(
    rows: int, inner: int, columns: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    """Return one product ``[rows, inner] @ [inner, columns]`` to be timed beside the rest."""
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(columns, inner, device=device, dtype=dtype)
    return lambda: left @ right.T


def peak_mb(work: Callable[[], Callable[[], object]], threads: int, device: str = "cpu") -> tuple[float, float]:
    """Measure memory in MB in a new process: after ``work()`` has built its model, and the rise by running it.

    On a CPU it is resident memory, whose peak never falls, so the process has to be new. On a GPU it is the memory that
    torch has allocated there, and ``work`` has to be picklable, as a forked process cannot use a GPU.
    """
    context: Any = multiprocessing.get_context("fork" if device == "cpu" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(work, threads, sender, device))
    process.start()
    sender.close()
    built, peak = receiver.recv()
    process.join()
    return built, peak - built


def _measure(work: Callable[[], Callable[[], object]], threads: int, sender: Any, device: str) -> None:
    torch.set_num_threads(threads)
    run = work()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        built = torch.cuda.memory_allocated()
        run()
        sender.send((built / 2**20, torch.cuda.max_memory_allocated() / 2**20))
        return
    with open("/proc/self/status") as status:
        built = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
    run()
    sender.send((built, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Print a Markdown table."""
    heads = list(rows[0])
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values())} |")


def finish(numbers: Mapping[str, float], as_json: bool) -> int:
    """Print the headline numbers, readable or as JSON on the last line of stdout; return exit code 0."""
    if as_json:
        print(json.dumps(dict(numbers)))
    else:
        print("\n" + "\n".join(f"{name}: {value:.3g}" for name, value in numbers.items()))
    return 0
