"""Two processes against one: training and sampling, in tokens per second, one thread each.

    python benchmarks/scaling.py                         DiNADO-Merge on a random GPT-2 of 30 million parameters
    python benchmarks/scaling.py --method dinado_soft --processes 4

It runs ``train.py`` from the first rollout to the last step, alternating between the numbers of processes, and reads
the metrics that the runs log; a ratio is that of two consecutive runs. Both sample the same rollouts and take the same
steps.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import timing  # noqa: E402
from benchmarks.case import Size, build_base  # noqa: E402
from workbench.settings.methods import METHODS  # noqa: E402

PROMPTS, PER_PROMPT, STEPS, WARM_UP = 48, 16, 12, 3
SETTINGS = (
    f"task.name=jsonl data.train_prompts=40 data.val_prompts=8 rollouts.per_prompt={PER_PROMPT} "
    "rollouts.max_new_tokens=24 rollouts.truncated=score rollouts.block_size=2 oracle.name=regex "
    "oracle.pattern=77 objective.lookahead.weight=0 "
    f"targets.positives_share=0 optim.norm_steps=0 optim.batch_size=64 optim.steps={STEPS} "
    f"eval.samples_per_prompt=1 eval.rollouts_per_prompt={PER_PROMPT} eval.best_of=0 trainer.accelerator=cpu "
    "trainer.progress=false trainer.log_every=1"
)


def main() -> int:
    """Measure both numbers of processes and print the ratios."""
    options = timing.parser(__doc__)
    options.set_defaults(repeats=3, threads=1)
    options.add_argument("--method", choices=METHODS, default="dinado_merge")
    options.add_argument("--processes", type=timing.whole, default=2)
    arguments = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    shapes = (1, arguments.processes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_case(folder)
        turns = [
            {count: measure(folder, arguments.method, count) for count in shapes} for _ in range(arguments.repeats)
        ]
    rows = [
        {"": what, **{f"{count} x {arguments.threads}": median(turns, count, what) for count in shapes}}
        for what in ("training", "sampling")
    ]
    timing.show(rows)
    ratios = {
        f"{short}_scaling": statistics.median(turn[shapes[1]][what] / turn[1][what] for turn in turns)
        for short, what in (("train", "training"), ("sampling", "sampling"))
    }
    return timing.finish(ratios, arguments.json)


def median(turns: list[dict[int, dict[str, float]]], count: int, what: str) -> float:
    """Compute the median of tokens per second with ``count`` processes."""
    return statistics.median(turn[count][what] for turn in turns)


def write_case(folder: Path) -> None:
    """Write a base and prompts to a folder."""
    size, stream = Size(), random.Random(0)
    base = build_base(size)
    base.model.save_pretrained(folder / "model")
    base.tokenizer.save_pretrained(folder / "model")
    prompts = [" ".join(str(stream.randrange(1, size.vocabulary)) for _ in range(size.prompt)) for _ in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def measure(folder: Path, method: str, processes: int) -> dict[str, float]:
    """Measure the tokens per second of one run, which samples anew.

    Raises:
        SystemExit: the run failed; the message holds its output.
    """
    with tempfile.TemporaryDirectory(dir=folder) as out:
        where = [f"base.name={folder}/model", f"task.path={folder}/prompts.jsonl", f"data.cache={out}", f"runs={out}"]
        words = [f"method={method}", *SETTINGS.split(), *where, f"trainer.devices={processes}"]
        command = [sys.executable, "train.py", "quickstart", *words, "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        (file,) = Path(out).glob("quickstart/*/metrics.jsonl")
        records = [json.loads(line) for line in file.read_text().splitlines()]
    training = [record["perf/tokens_per_s"] for record in records[:-1] if "perf/tokens_per_s" in record]
    result = json.loads(done.stdout.splitlines()[-1])
    # Responses that do not end within their budget all have the same length.
    sampling = result["perf/rollouts_per_s"] * result["base/tokens"]
    return {"training": statistics.median(training[WARM_UP:]), "sampling": sampling}


if __name__ == "__main__":
    sys.exit(main())
