"""A look at an oracle before anything is trained: a few texts of the base, their verdicts, and settings that suit."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import torch
from rich.text import Text

from datamodules.tasks import build_task
from dinado.evaluation.advice import advise
from dinado.evaluation.judged_samples import JudgedSamples, sample_and_judge
from dinado.evaluation.result_rows import Row
from dinado.metrics.intervals import proportion_interval
from engine.before_sampling import check_before_sampling
from engine.console import run_console
from engine.devices import device_of
from engine.restoring import build_base
from workbench.settings.config import Config

TEXTS, PROMPTS = 64, 16
"""Texts of a probe, over at most so many prompts."""
EXAMPLES = 5


@torch.no_grad()
def probe(config: Config, words: Sequence[str], *, quiet: bool) -> Row:
    """Sample texts of the base, judge them, and print what to set.

    Args:
        words: the command line, experiment first, to which the advice is added.
        quiet: write to stderr, because stdout is reserved for ``--json``.

    Raises:
        OracleError: from the oracle, with the prompt and text that caused it.
    """
    console = run_console(quiet)
    task, base = build_task(config), build_base(config)
    check_before_sampling(config, base, task)
    base.model.to(device_of(config.trainer))
    prompts = task.train_prompts[:PROMPTS]
    samples = sample_and_judge(
        base.model,
        base,
        task.oracle,
        prompts,
        per_prompt=-(-TEXTS // len(prompts)),
        max_new_tokens=config.rollouts.max_new_tokens,
        truncated=config.rollouts.truncated,
        seed=config.seed,
    )
    rate = proportion_interval(sum(samples.score), len(samples.score))
    truncated = 1 - sum(samples.finished) / len(samples.finished)
    console.print(
        f"{len(samples.texts)} texts of {base.name} for {len(prompts)} of {len(task.train_prompts)} prompts: success "
        f"{rate.mean:.2f} [{rate.low:.2f}, {rate.high:.2f}], {truncated:.0%} cut off after "
        f"{config.rollouts.max_new_tokens} tokens",
        markup=False,
    )
    for line in _examples(samples):
        console.print(line)
    advice = advise(
        success=rate.mean,
        truncated=truncated,
        max_new_tokens=config.rollouts.max_new_tokens,
        num_prompts=len(task.train_prompts),
        per_prompt=config.rollouts.per_prompt,
        batch_size=config.optim.batch_size,
    )
    for reason in advice.reasons:
        console.print(f"* {reason}", markup=False)
    replaced = {word.partition("=")[0] for word in advice.settings}
    kept = [word for word in words if word.removeprefix("--").partition("=")[0] not in replaced]
    command = shlex.join(["python", "train.py", *kept, *advice.settings])
    console.print(Text(command), soft_wrap=True)
    return {
        "probe/success": rate.mean,
        "probe/success_low": rate.low,
        "probe/success_high": rate.high,
        "probe/truncated": truncated,
    }


def _examples(samples: JudgedSamples) -> list[Text]:
    """Return some texts with their verdicts, accepted ones first, as far as there are any."""
    order = sorted(range(len(samples.texts)), key=lambda row: -samples.score[row])
    half = EXAMPLES // 2
    chosen = list(dict.fromkeys([*order[: EXAMPLES - half], *order[::-1][:half]]))
    lines = []
    for row in chosen:
        end = "" if samples.finished[row] else " ..."
        lines.append(Text(f"  {samples.score[row]:.2f}  {' '.join(samples.texts[row].split())}{end}"))
    return lines
