"""Evaluation of a trained method: held-out rollouts for KL and R, fresh samples for success, reference rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from datamodules.held_out import HeldOutRollouts
from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.tasks import Task
from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.control.controlled_lm import ControlledLM
from dinado.evaluation.exact_rows import exact_base_row, exact_row
from dinado.evaluation.judged_samples import JudgedSamples, pieces, sample_and_judge
from dinado.evaluation.result_rows import Row, best_of, row_of, texts_per_exact_text, without_kl
from dinado.exact import ExactWorld
from dinado.metrics.distance import Distance, distance
from dinado.objectives.weights import smoothed_root
from dinado.ranks import is_writer
from dinado.rollouts.rollout_table import Rollouts
from lightning_modules.callbacks.keep_best import DISTANCE
from lightning_modules.rollout_method import RolloutMethod
from workbench.settings.config import Config


@dataclass
class Report:
    """The results of an evaluation.

    Attributes:
        rows: rows of the final table by label.
        before, after: the samples behind the first and the last of them.
        held_out: for each held-out prompt D and G of dinado/metrics/distance.py, in nats.
    """

    rows: dict[str, Row]
    before: JudgedSamples
    after: JudgedSamples
    held_out: list[dict[str, Any]]


def base_rows(config: Config, held_out: HeldOutRollouts, task: Task) -> tuple[dict[str, Row], JudgedSamples]:
    """Compute the reference rows from the held-out rollouts: the base, and best-of-n of it."""
    samples = samples_of_store(held_out.rollouts)
    with_metrics = config.eval.text_metrics and task.has_references
    rows = {"base": row_of(samples, with_text_metrics=with_metrics) | _distance_of_base(held_out)}
    n = min(config.eval.best_of, config.eval.rollouts_per_prompt)
    if n:
        rows[f"best of {n}"] = without_kl(row_of(best_of(samples, n), with_text_metrics=with_metrics))
    return rows, samples


@torch.no_grad()
def evaluate_method(
    method: RolloutMethod, data: RolloutDataModule, task: Task, world: ExactWorld | None
) -> Report | None:
    """Compute all `val/` numbers of a method and the reference rows; ranks share the work, rank 0 gets the report."""
    config, base = method.config, method.base
    method.eval()
    computed, found = held_out_numbers(method, data)
    numbers = {f"val/{key}": value for key, value in computed.items()}
    for name in ("forward_consistency", "forward_consistency_per_token"):
        if f"val/{name}" in numbers:
            numbers[f"reg/{name}"] = numbers.pop(f"val/{name}")
    model = method.controlled()
    after = _samples(model, base, task, config)
    with base.in_step():
        if not is_writer():
            return None
        report = _report(method, task, world, numbers, after, data.held_out)
    columns = (values.tolist() for values in (found.log_ratio_P, found.gap_P, found.known_P))
    for prompt, *values in zip(task.val_prompts, *columns, strict=False):
        report.held_out.append(
            {"prompt": prompt.transcript} | dict(zip(("log_ratio", "gap", "known"), values, strict=True))
        )
    return report


@torch.no_grad()
def held_out_numbers(method: RolloutMethod, data: RolloutDataModule) -> tuple[dict[str, float], Distance]:
    """Compute the numbers of the held-out rollouts; every rank reads its share of them."""
    method.diagnostics.reset()
    with method.base.in_step():
        for batch in data.val_dataloader():
            batch = batch.to(method.base.device)
            method.diagnostics.update(batch, method.terms(batch).held_out)
    numbers, found = method.diagnostics.compute(), method.diagnostics.distance()
    method.diagnostics.reset()
    return numbers, found


def distance_now(method: RolloutMethod, data: RolloutDataModule) -> float:
    """Compute KL(q*||q) of the present weights, in nats; training may go on afterwards."""
    training = method.training
    method.eval()
    numbers, _ = held_out_numbers(method, data)
    method.train(training)
    return numbers[DISTANCE]


def _report(
    method: RolloutMethod,
    task: Task,
    world: ExactWorld | None,
    numbers: Row,
    after: JudgedSamples,
    held_out: HeldOutRollouts,
) -> Report:
    """Build the report: the method's row, the reference rows, and samples with predicted R."""
    config, model = method.config, method.controlled()
    rows, before = base_rows(config, held_out, task)
    row = numbers | row_of(after, with_text_metrics=config.eval.text_metrics and task.has_references)
    if world is not None:
        row |= exact_row(world, model, config.eval.exact_samples, config.seed)
        rows["base"] |= exact_base_row(world)
    for one in (row, rows["base"]):
        one |= texts_per_exact_text(one)
    rows[config.method] = row
    for samples in (before, after):
        trace_r(method, samples, before, config.eval.show)
    return Report(rows, before, after, [])


def _samples(model: ControlledLM, base: BaseLM, task: Task, config: Config) -> JudgedSamples:
    """Sample from the model for all held-out prompts, divided over the ranks, and gather the samples on all of them."""
    several = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    with base.in_step():
        mine = sample_and_judge(
            model,
            base,
            task.oracle,
            task.val_prompts,
            per_prompt=config.eval.samples_per_prompt,
            max_new_tokens=config.rollouts.max_new_tokens,
            truncated=config.rollouts.truncated,
            seed=config.seed,
            places=range(rank, len(task.val_prompts), world_size),
        )
    if not several:
        return mine
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, mine)
    everything, place_of = JudgedSamples(), []
    for number, part in enumerate(parts):
        everything.add(part)
        place_of += [number + world_size * (row // config.eval.samples_per_prompt) for row in range(len(part.texts))]
    return everything.take(sorted(range(len(place_of)), key=place_of.__getitem__))


def samples_of_store(rollouts: Rollouts) -> JudgedSamples:
    """Convert stored base rollouts to the form of fresh samples."""
    prompts = [rollouts.prompts[index] for index in rollouts.prompt_index_N.tolist()]
    log_p = rollouts.log_p_N.tolist()
    return JudgedSamples(
        prompts,
        [rollouts.text(row) for row in range(len(rollouts))],
        rollouts.finished_N.tolist(),
        rollouts.score_N.tolist(),
        log_p,
        log_p,
        rollouts.length_N.tolist(),
        [rollouts.response(row)[0].tolist() for row in range(len(rollouts))],
        [[] for _ in range(len(rollouts))],
    )


def trace_r(method: RolloutMethod, samples: JudgedSamples, before: JudgedSamples, count: int) -> None:
    """Store predicted R, if any, along the first text of each of the first ``count`` prompts, in one forward pass.

    Args:
        before: base rollouts of the same prompts, which give R(c) to a method that does not predict it.
    """
    rows = [row for row in samples.first_rows(count) if len(samples.tokens[row])]
    if not rows:
        return
    base, prompts = method.base, [samples.prompts[row] for row in rows]
    ids_PS, mask_PS = (tensor.to(base.device) for tensor in base.encode_prompts(prompts))
    tokens = [samples.tokens[row] for row in rows]
    batch = RolloutBatch.unjudged(ids_PS, mask_PS, range(len(rows)), tokens)
    with base.adapters(on=False):
        batch.log_p_BT = base.log_probs(batch)  # a policy's ratios are those to it
    everyone = [before.prompts[row] for row in before.first_rows(len(before.prompts))]
    rates = {
        prompt.id: smoothed_root(torch.tensor(scores))
        for prompt, scores in zip(everyone, before.per_prompt(before.score), strict=True)
    }
    batch.root_B = torch.tensor([float(rates.get(prompt.id, 0.5)) for prompt in prompts], device=base.device)
    log_r_BT = method.terms(batch).log_r_BT
    if log_r_BT is None:
        return
    log_r_BT = log_r_BT.float()
    for row, ids, log_r_T in zip(rows, tokens, log_r_BT.clamp(max=0).exp().tolist(), strict=True):
        samples.along[row] = list(zip(pieces(base, ids), log_r_T[: len(ids)], strict=True))


def _distance_of_base(held_out: HeldOutRollouts) -> Row:
    """Return KL(q*||p), with nothing closed of it at no cost."""
    found = distance(held_out.of_base())
    row = {
        "val/kl_to_optimum": found.base.mean,
        "val/kl_to_optimum_low": found.base.low,
        "val/kl_to_optimum_high": found.base.high,
        "val/gap_closed": 0.0,
        "val/kl_from_base": 0.0,
    }
    return row if found.wanted is None else row | {"val/kl_rollouts_wanted": float(found.wanted)}
