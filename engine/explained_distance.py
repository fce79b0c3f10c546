"""What ``evaluate.py RUN --where`` shows: which tokens the distance to q* and the cost of control come from."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.tasks import Task
from dinado.batch import RolloutBatch
from dinado.errors import ConfigError
from dinado.evaluation.judged_samples import JudgedSamples
from dinado.evaluation.nats_by_token import Decomposition, rows
from lightning_modules.rollout_method import RolloutMethod
from workbench.settings.config import Config

ROWS = 64
"""Samples of q in one forward pass."""


def check_where(config: Config) -> None:
    """Raise :class:`ConfigError` unless the model is evaluated as it was trained."""
    if config.alpha != 1.0:
        raise ConfigError(
            f"--where explains the trained model itself, and alpha={config.alpha:g} is another; leave it out"
        )


@torch.no_grad()
def where(
    method: RolloutMethod, data: RolloutDataModule, task: Task, samples: JudgedSamples
) -> list[dict[str, float | str]]:
    """Decompose KL(q*||q) along accepted held-out texts, and KL(q||p) along samples of the model."""
    base = method.base
    optimum, cost = (Decomposition(task.oracle, base.eos_ids) for _ in range(2))
    accepted_P: dict[int, int] = {}
    for batch in data.val_dataloader():
        for place in _accepted_prompts(batch):
            accepted_P[place] = accepted_P.get(place, 0) + 1
    with base.in_step():
        for batch in data.val_dataloader():
            if not batch.weight_total or not (kept := _accepted_rows(batch)):
                continue
            here = batch.to(base.device)
            held_out = method.terms(here).held_out
            assert held_out.log_p_BT is not None, "held-out rollouts are drawn from the base"
            nats_BT = (held_out.log_p_BT - held_out.log_q_BT).float().cpu()
            for row, place in kept:
                tokens = batch.response_BT[row, : int(batch.response_mask_BT[row].sum())].tolist()
                _add(optimum, method, task, place, tokens, nats_BT[row], 1 / accepted_P[place])
        ids = [prompt.id for prompt in task.val_prompts]
        for start in range(0, len(samples.tokens), ROWS):
            chosen = [i for i in range(start, min(start + ROWS, len(samples.tokens))) if len(samples.tokens[i])]
            if not chosen:
                continue
            places = [ids.index(samples.prompts[i].id) for i in chosen]
            distinct = sorted(set(places))
            prompt_ids_PS, mask_PS = base.encode_prompts([task.val_prompts[place] for place in distinct])
            prompt_of = [distinct.index(place) for place in places]
            batch = RolloutBatch.unjudged(
                prompt_ids_PS.to(base.device), mask_PS.to(base.device), prompt_of, [samples.tokens[i] for i in chosen]
            )
            with base.adapters(on=False):
                batch.log_p_BT = base.log_probs(batch)
            nats_BT = (method.terms(batch).held_out.log_q_BT - batch.known_log_p_BT).float().cpu()
            for row, (i, place) in enumerate(zip(chosen, places, strict=True)):
                _add(cost, method, task, place, list(samples.tokens[i]), nats_BT[row], 1.0)
    return rows(optimum, cost) if optimum.by_kind.weight and cost.by_kind.weight else []


def show_where(console: Console, table: list[dict[str, float | str]]) -> None:
    """Print the table, whose two groups of rows add up to the same sums."""
    if not table:
        console.print("no held-out rollout is accepted, so nothing can be said about tokens of q*")
        return
    shown = Table(title="Nats of the mean text, by kind of token and by position", title_justify="left")
    for name in table[0]:
        shown.add_column(Text("" if name == "part" else name), justify="left" if name == "part" else "right")
    for row in table:
        shown.add_row(*(Text(value if isinstance(value, str) else f"{value:.2f}") for value in row.values()))
    console.print(shown)


def _accepted_rows(batch: RolloutBatch) -> list[tuple[int, int]]:
    """Return rows of accepted rollouts, each with the position of its prompt."""
    assert batch.held_out is not None and batch.prompt_index_P is not None, "held-out batches know their prompts"
    place_B = batch.prompt_index_P[batch.prompt_of_row_B].tolist()
    accepted: list[Any] = batch.held_out.accepted_B.tolist()
    return [(row, place) for row, place in enumerate(place_B) if accepted[row]]


def _accepted_prompts(batch: RolloutBatch) -> list[int]:
    return [place for _, place in _accepted_rows(batch)] if batch.weight_total else []


def _add(
    to: Decomposition,
    method: RolloutMethod,
    task: Task,
    place: int,
    tokens: list[int],
    nats_T: torch.Tensor,
    weight: float,
) -> None:
    prefixes = [method.base.decode(tokens[:end]) for end in range(len(tokens) + 1)]
    to.add(task.val_prompts[place], tokens, prefixes, nats_T[: len(tokens)].numpy(), weight)
