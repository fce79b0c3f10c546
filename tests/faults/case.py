"""The run that faults are injected into, and what a run that went on has to equal.

Small, but with every stage: blocks of rollouts, verdicts, looks ahead, states on disk, rounds from the model under
training, densities, checkpoints, validation, evaluation. A run is a real process: forked from this one, which has done
the imports, unless it starts others itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "tests"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402

RUN = "runs/quickstart/run"
SETTINGS = (
    *("base.name=model", "task.name=jsonl", "task.path=prompts.jsonl", "data.cache=cache", "runs=runs"),
    *("data.states=float32", "data.train_prompts=0", "data.val_prompts=2", "method=nado", "oracle.name=regex"),
    *("oracle.pattern=2", "rollouts.max_new_tokens=5", "rollouts.per_prompt=12", "rollouts.rounds=3"),
    *("rollouts.truncated=score", "rollouts.block_size=2", "targets.weights=balance", "targets.positives_share=0.25"),
    *(
        "objective.lookahead.weight=0.5",
        "objective.lookahead.candidates=4",
        "network.width=16",
        "network.heads=2",
        "network.layers=1",
    ),
    *(
        "optim.batch_size=16",
        "optim.steps=9",
        "eval.samples_per_prompt=2",
        "eval.rollouts_per_prompt=4",
        "eval.max_rollouts=16",
    ),
    *("eval.best_of=2", "trainer.accelerator=cpu", "trainer.progress=false", "trainer.log_every=1"),
    *("trainer.checkpoint_every=2", "trainer.val_every=4"),
)
LIMIT_SECONDS = 180


class Ended(NamedTuple):
    """How a process ended: its exit code, negative for a signal, and what it said."""

    code: int
    out: str
    err: str


def build(folder: Path) -> None:
    """The base and the prompts, once; every case links to them."""
    from helpers import tiny_llama

    from dinado.bases.markov import build_word_tokenizer

    folder.mkdir(parents=True)
    tiny_llama(12).save_pretrained(folder / "model")
    build_word_tokenizer(12).save_pretrained(folder / "model")
    lines = [json.dumps({"prompt": f"{i} {j}"}) for i in (3, 4) for j in (6, 7, 8)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))


def link(parts: Path, folder: Path) -> None:
    """Let a case find the base and the prompts under names that do not depend on where it lies."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model", "prompts.jsonl"):
        (folder / name).symlink_to(parts / name)


def words(*more: str, resume: str | None = None) -> list[str]:
    """The command line after ``train.py``."""
    return ["quickstart", *SETTINGS, *more] if resume is None else ["--resume", resume]


def forked(
    folder: Path, arguments: list[str], prepare: Callable[[], None] = lambda: None, said: Path | None = None
) -> Ended:
    """Run ``train.py`` in ``folder`` as a process of its own, with something prepared in it first.

    Args:
        said: where its output is kept; null keeps it in the folder.
    """
    files = [(said or folder) / f".{name}" for name in ("out", "err")]
    pid = os.fork()
    if not pid:
        _child(folder, arguments, prepare, files)
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, 9)
        time.sleep(0.02)
    return Ended(os.waitstatus_to_exitcode(found[1]), *(file.read_text(errors="replace") for file in files))


def _child(folder: Path, arguments: list[str], prepare: Callable[[], None], said: list[Path]) -> None:
    code = 99
    try:
        os.chdir(folder)
        for number, file in enumerate(said, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ["WANDB_RUN_ID"] = Path(RUN).name
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        sys.argv = [str(ROOT / "train.py"), *arguments]
        import train
        from workbench import cli

        prepare()
        code = cli.run(train.main, "", train.OPTIONS, argv=arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def started(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """The same with an interpreter of its own, for runs that start processes."""
    environment = os.environ | {"WANDB_RUN_ID": Path(RUN).name}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment)


def fingerprint(folder: Path) -> dict[str, Any]:
    """What two runs of the same settings share, bit for bit: weights, logged numbers, rollouts, texts."""
    run = folder / RUN
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "step": checkpoint["global_step"],
        "rollouts": {name: value for name, (value, _) in shards(folder).items()},
        "texts": (run / "samples" / "after.jsonl").read_text(),
        "weights": checkpoint["state_dict"],
        "numbers": [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in records],
    }


def shards(folder: Path) -> dict[str, tuple[str, tuple[int, int]]]:
    """Every finished shard: its digest, and inode and time of change, by which one that is made again is known.

    What is said about texts that are not there, hidden states say, is not finished: it is made with them.
    """
    from dinado.rollouts.shard import intact_digest

    found = {}
    for file in sorted((folder / "cache" / "rollouts").rglob("*.arrow")):
        digest = intact_digest(file)
        of_round = file.parent if file.parent.name.startswith("round-") else file.parent.parent
        if digest is not None and intact_digest(of_round / file.name) is not None:
            found[str(file.relative_to(folder))] = (digest, (file.stat().st_ino, file.stat().st_mtime_ns))
    return found


def difference(found: dict[str, Any], expected: dict[str, Any], to_rounding: bool = False) -> str:
    """The first thing in which two runs differ; empty if they are the same.

    Args:
        to_rounding: weights may differ by 1e-5, and what is computed from them by as much as follows from that.
    """
    weights = expected["weights"]
    if found["weights"].keys() != weights.keys() or found["step"] != expected["step"]:
        return "step or names of weights"
    within = 1e-5 if to_rounding else 0.0
    for name, value in found["weights"].items():
        if not (value - weights[name]).abs().max() <= within:
            return f"weights: {name} by {(value - weights[name]).abs().max():.2g}"
    exact = () if to_rounding else ("rollouts", "texts", "numbers")
    return next((key for key in exact if found[key] != expected[key]), "")
