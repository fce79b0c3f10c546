"""Decoding to q*: how near chosen texts come to it, against enumeration and on a real model, and what they cost.

    python benchmarks/exact_decoding.py                        trains what it needs; about half an hour on a laptop
    python benchmarks/exact_decoding.py --run runs/quickstart/<id> --json
    python benchmarks/exact_decoding.py --only worlds --worlds 3

Exact worlds: DiNADO-Soft is trained in each of them, and K = 16 particles of sequential Monte Carlo, twisted by its
own values, are held against the truth: the bounds on log R(c), the bound on KL(returned||q*), and KL(q*||returned).
Real model: a run of the quickstart, measured by ``evaluate.py --exact 16``; rejection from the base spends as many
sampled tokens; the time is that of 16 plain samples. ``--json`` ends with one object:

    success_k16, kl_bound_k16       of the text that is chosen among 16 (resampling), over the held-out prompts
    time_ratio_k16                  its time over that of 16 plain samples, median over turns
    rejection_success_same_tokens   of rejection from the base with as many sampled tokens
    exact_world_kl_ratio            KL(q*||returned) over KL(q*||q), mean over worlds
    bounds_enclose                  share of worlds whose truth the 95 % intervals of the bounds enclose
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from scipy.special import gammaln

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import alternate, finish, ratio, show, whole  # noqa: E402
from datamodules.tasks import build_task  # noqa: E402
from dinado.decoding.answers import choose_one  # noqa: E402
from dinado.decoding.bounds import kl_bound, kl_of_returned  # noqa: E402
from dinado.decoding.log_weights import log_mean  # noqa: E402
from dinado.decoding.resampling import resample  # noqa: E402
from dinado.decoding.smc import SMCSettings, smc  # noqa: E402
from dinado.evaluation.judged_samples import sample_and_judge  # noqa: E402
from dinado.exact.world import causal_lm_rows  # noqa: E402
from dinado.metrics.intervals import mean_interval  # noqa: E402
from dinado.seeding import generator  # noqa: E402
from engine.restoring import build_base, build_world, restore_method  # noqa: E402
from engine.run_twist import twist_of  # noqa: E402
from workbench.settings.loader import from_run_folder  # noqa: E402

K = 16
GROUPS, TRUE, INNER = 400, 60, 16
"""Groups for a bound; texts, and groups that retain each of them, for a distance."""
WORLD = "method=dinado_soft optim.steps=200 rollouts.per_prompt=4000 eval.rollouts_per_prompt=200 \
eval.samples_per_prompt=50 trainer.progress=false"
PLAIN_PROMPTS, BASE_TEXTS = 8, 64


def main() -> int:
    """Measure both parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained run of the quickstart; without it one is trained")
    parser.add_argument("--worlds", type=whole, default=10, help="exact worlds, task.seed 0, 1, ... (default 10)")
    parser.add_argument("--jobs", type=whole, default=2, help="worlds at a time, a thread each (default 2)")
    parser.add_argument("--only", choices=("worlds", "model"), help="measure one part")
    parser.add_argument("--repeats", type=whole, default=3, help="turns of the timing (default 3)")
    parser.add_argument("--cache", default=str(ROOT / "cache"), help="data.cache of what is trained and read")
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object on the last line")
    options = parser.parse_args()
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "model":
            numbers |= worlds(options.worlds, options.jobs, Path(folder), options.cache)
        if options.only != "worlds":
            run = options.run or train("quickstart", Path(folder), options.cache)
            numbers |= real_model(run, options.cache, options.repeats)
    return finish(numbers, options.json)


def train(experiment: str, folder: Path, cache: str, *settings: str) -> Path:
    """Train a run and return its folder."""
    command = [sys.executable, str(ROOT / "train.py"), experiment, f"runs={folder}", f"data.cache={cache}", *settings]
    return Path(last_line([*command, "--json"])["run_dir"])


def last_line(command: list[str]) -> dict[str, Any]:
    """Run a command and return the JSON object on the last line of its output."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def worlds(count: int, jobs: int, folder: Path, cache: str) -> dict[str, float]:
    """Hold sequential Monte Carlo against the truth in exact worlds."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=one_thread) as pool:
        done = pool.map(partial(world_row, folder=folder, cache=cache), range(count))
        rows = list(track(done, "exact worlds", count, transient=True))
    show(rows)
    print()
    return {
        "exact_world_kl_ratio": float(np.mean([row["KL(q*||returned)"] / row["KL(q*||q)"] for row in rows])),
        "bounds_enclose": float(np.mean([row["enclosed"] == "yes" for row in rows])),
    }


def one_thread() -> None:
    """Give this process one thread; the others have the rest."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def world_row(seed: int, folder: Path, cache: str) -> dict[str, Any]:
    """Train in one world and measure there."""
    run = train("exact_world", folder, cache, *WORLD.split(), f"task.seed={seed}")
    return {"world": seed} | world_numbers(run)


@torch.no_grad()
def world_numbers(run: Path) -> dict[str, Any]:
    """Measure the bounds and the distances of one world."""
    config = from_run_folder(run).config
    world = build_world(config, build_base(config))
    method = restore_method(run)
    task, model = build_task(config), method.controlled()
    assert world is not None, "the run is one of an exact world"
    (prompt,) = task.val_prompts[:1]
    twist = twist_of(method, task)
    settings = SMCSettings(K, every=1)
    common: dict[str, Any] = {
        "max_new_tokens": config.rollouts.max_new_tokens,
        "truncated": config.rollouts.truncated,
        "seed": config.seed,
    }

    def log_z(retained: list[list[int]] | None, groups: int) -> tuple[np.ndarray, list[Any]]:
        found = smc(model, task.oracle, [prompt], twist, settings, places=[0] * groups, retained=retained, **common)
        return np.array([one.log_z for one in found]), found

    log_r = world.log_success
    below_G, found = log_z(None, GROUPS)
    success = float(np.isfinite(below_G).mean())
    exact = world.sample_optimal(GROUPS, generator(config.seed, "exact texts"))
    above_G, _ = log_z(exact, GROUPS)
    returned = [choose_one(one, number, K, 0, config.seed) for number, one in enumerate(found)]
    tokens = [list(answer.tokens) for answer in returned if answer.accepted][:TRUE]
    # KL(returned||q*) = E log(density of what is returned / q*), the density by retaining it (bounds.py).
    of_returned = log_z([row for row in tokens for _ in range(INNER)], len(tokens) * INNER)[0].reshape(-1, INNER)
    of_exact = log_z([row for row in exact[:TRUE] for _ in range(INNER)], TRUE * INNER)[0].reshape(-1, INNER)
    kl = log_r - math.log(success) + mean_interval([log_mean(-log_z_M) for log_z_M in of_returned]).mean
    rows = causal_lm_rows(model, method.base.encode_prompts([prompt])[0][0].tolist())
    own = world.kl_to_optimum(rows, config.eval.exact_samples, generator(config.seed, "exact kl")).mean
    low, high = mean_interval(below_G[np.isfinite(below_G)]), mean_interval(above_G)
    bound = kl_bound(log_r, below_G)
    enclosed = math.log(success) + low.low <= log_r <= high.high and kl <= bound + (low.high - low.mean)
    return {
        "gap closed": 1 - own / world.kl_base,
        "KL(q*||q)": own,
        "KL(q*||returned)": kl_of_returned(log_r, success, of_exact),
        "KL(returned||q*)": kl,
        "its bound": bound,
        "log R": log_r,
        "E log Z": low.mean,
        "E log Z, one exact": high.mean,
        "enclosed": "yes" if enclosed else "no",
    }


@torch.no_grad()
def real_model(run: Path, cache: str, repeats: int) -> dict[str, float]:
    """Measure a run of a real model by the documented command, and time it."""
    command = [sys.executable, str(ROOT / "evaluate.py"), str(run), f"data.cache={cache}", "--exact", str(K), "--json"]
    measured = last_line(command)
    exact = measured["exact"]
    method = restore_method(run, overrides=[f"data.cache={cache}"])
    config, base = method.config, method.base
    task, model = build_task(config), method.controlled()
    budget, truncated = config.rollouts.max_new_tokens, config.rollouts.truncated
    common: dict[str, Any] = {"max_new_tokens": budget, "truncated": truncated, "seed": 1}
    some = task.val_prompts[:PLAIN_PROMPTS]
    paths = {
        "plain": lambda: plain_samples(model, base, some, budget),
        "chosen": lambda: resample(model, task.oracle, some, texts=K, **common),
    }
    seconds = alternate(paths, repeats)
    with base.adapters(on=False):
        drawn = sample_and_judge(base.model, base, task.oracle, task.val_prompts, per_prompt=BASE_TEXTS, **common)
    each = round(exact["tokens_per_text"] / float(np.mean(drawn.num_tokens)))
    accepted = [sum(score > 0 for score in scores) for scores in drawn.per_prompt(drawn.score)]
    numbers = {
        "success_k16": exact["success"],
        "kl_bound_k16": exact["kl_bound"],
        "time_ratio_k16": ratio(seconds["chosen"], seconds["plain"]),
        "rejection_success_same_tokens": float(np.mean([1 - none_accepted(BASE_TEXTS, a, each) for a in accepted])),
    }
    show(
        [
            {"": "one text of the run", "success": exact["success_of_one"], "distance": measured["val/kl_to_optimum"]},
            {"": f"one of {K}", "success": exact["success"], "distance": exact["kl_bound"]},
            {
                "": f"rejection from the base, {each} texts",
                "success": numbers["rejection_success_same_tokens"],
                "distance": 0.0,
            },
        ]
    )
    ends = [
        "no interval" if exact[f"{name}_low"] is None else f"[{exact[f'{name}_low']:.2f}, {exact[f'{name}_high']:.2f}]"
        for name in ("success", "kl_bound")
    ]
    print(f"success of one of {K}: {ends[0]}; bound: {ends[1]}; {exact['tokens_per_text']:.0f} tokens for one")
    return numbers


def plain_samples(model: Any, base: Any, prompts: Any, budget: int) -> None:
    """Sample K texts a prompt without judging or weighing them."""
    from dinado.bases.decoder import Decoder
    from dinado.rollouts.sampler import sample, uniforms

    ids_PS, mask_PS = (tensor.to(base.device) for tensor in base.encode_prompts(prompts))
    sample(Decoder(model), ids_PS, mask_PS, base.eos_ids, uniforms(range(len(prompts)), K, budget, 1, "plain"))


def none_accepted(total: int, accepted: int, drawn: int) -> float:
    """Return the probability that none of some texts, drawn from ``total`` without replacement, is accepted."""
    if drawn > total - accepted:
        return 0.0

    def log_choose(n: int) -> float:
        return float(gammaln(n + 1) - gammaln(drawn + 1) - gammaln(n - drawn + 1))

    return math.exp(log_choose(total - accepted) - log_choose(total))


if __name__ == "__main__":
    sys.exit(main())
