"""The GPU tests, the speed benchmarks at real sizes and a run of the demo, as one JSON file with the card's name.

    benchmarks/gpu.sh --output docs/results/gpu.json
    benchmarks/gpu.sh --device cpu --only train_step       rehearses a part on a CPU, with small sizes

Steps come in order of importance. The file is written after each, so nothing is lost if time runs out; a step that
fails is recorded with the end of its output, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TAIL = 2000
"""Characters of the output of a failed step that are kept."""


@dataclass(frozen=True)
class Step:
    """A command; ``seconds`` is the time that it may take."""

    name: str
    words: list[str]
    seconds: int = 120


def main() -> int:
    """Run the steps and write the file; exit with 1 if any failed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path, default=Path("gpu.json"), help="file to write (default gpu.json)")
    options.add_argument("--minutes", type=float, default=8.0, help="time for all steps (default 8)")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses, with small sizes")
    options.add_argument("--only", nargs="*", default=[], help="names of steps, or beginnings of them")
    arguments = options.parse_args()
    about = environment(arguments.device)
    if about is None:
        options.error("there is no CUDA device that torch can use here; --device cpu rehearses the steps")
    record: dict[str, Any] = {"device": about, "steps": {}}
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        for step in steps(arguments.device, Path(folder)):
            if arguments.only and not step.name.startswith(tuple(arguments.only)):
                continue
            left = end - time.monotonic()
            found = (
                run(step, arguments.device, min(step.seconds, left)) if left > 10 else {"ok": False, "why": "no time"}
            )
            record["steps"][step.name] = found
            print(f"{step.name}: {'ok' if found['ok'] else found['why']} {found.get('numbers', '')}", flush=True)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if record["steps"] and all(found["ok"] for found in record["steps"].values()) else 1


def steps(device: str, folder: Path) -> Iterator[Step]:
    """Yield the steps in order of importance."""
    yield Step("tests", ["-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", "-rfE", "--tb=short"], 240)
    gpu = device == "cuda"
    demo = ["train.py", "quickstart", f"runs={folder}/runs", "trainer.progress=false", "--json"]
    yield Step("quickstart", [*demo, *(["trainer.accelerator=gpu"] if gpu else ["--fast-dev-run"])], 150)
    for base in ("llama-1b", "gpt2-large") if gpu else ("gpt2-like",):
        where = ["--base", base, *(["--device", "cuda", "--dtype", "bfloat16"] if gpu else [])]
        for name in ("train_step", "sampling", "decoding", "memory"):
            repeats = "1" if name == "memory" or not gpu else "5"
            yield Step(f"{name} {base}", [f"benchmarks/{name}.py", *where, "--repeats", repeats, "--json"])


def run(step: Step, device: str, seconds: float) -> dict[str, Any]:
    """Run a step in a process group of its own, which ends with it; return what came of it."""
    started = time.monotonic()
    environment = os.environ | {"DINADO_TEST_DEVICE": device, "WANDB_MODE": "disabled"}
    process = subprocess.Popen(
        [sys.executable, *step.words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
        why = "" if process.returncode == 0 else f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        why = f"not done after {seconds:.0f} s"
    found: dict[str, Any] = {
        "command": " ".join(["python", *step.words]),
        "ok": not why,
        "seconds": round(time.monotonic() - started, 1),
    }
    if why:
        return found | {"why": why, "output": said[-TAIL:]}
    last = said.rstrip().splitlines()[-1] if said.strip() else ""
    if last.startswith("{"):
        numbers = {key: value for key, value in json.loads(last).items() if isinstance(value, int | float)}
        return found | {"numbers": numbers}
    return found | {"said": last}


def environment(device: str) -> dict[str, Any] | None:
    """Return what the numbers depend on; None where there is no GPU to measure."""
    import torch
    import transformers

    about = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if device == "cpu":
        return {"card": "none, rehearsed on a CPU"} | about
    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(0)
    return {"card": card.name, "memory_gb": round(card.total_memory / 1e9, 1), "cuda": torch.version.cuda} | about


if __name__ == "__main__":
    sys.exit(main())
