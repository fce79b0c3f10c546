"""Diagnostics of a model on held-out rollouts of the base: its distance to q*, and the quality of its R.

They are kept as plain numbers per rollout and gathered over processes by prompt, so that nothing is counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dinado.batch import RolloutBatch
from dinado.metrics.distance import Distance, PromptDraws, distance
from dinado.objectives.estimators import calibration_error, pairwise_auc


class HeldOut(NamedTuple):
    """The outputs of a method on a batch of base rollouts.

    Attributes:
        log_p_BT: log-probability of each response token under the base; None where it is unknown.
        log_q_BT: the same under the controlled model.
        log_r_BT: log R after each token; None for a method that predicts none.
        consistency_B: forward consistency of each rollout, in nats; None without R.
        num_links_B: number of pairs of neighbouring values in it.
    """

    log_p_BT: Tensor | None
    log_q_BT: Tensor
    log_r_BT: Tensor | None = None
    consistency_B: Tensor | None = None
    num_links_B: Tensor | None = None


class RolloutDiagnostics:
    """An accumulator of held-out rollouts, reduced to the ``val/`` metrics that need no sampling."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard all collected rollouts."""
        self._prompts: dict[tuple[int, ...], list[dict[str, Any]]] = {}

    def update(self, batch: RolloutBatch, held_out: HeldOut) -> None:
        """Add a batch of base rollouts; one of weight 0 is a filler and is ignored."""
        if not batch.weight_total:
            return
        if held_out.log_p_BT is None:
            raise ValueError("held-out rollouts are drawn from the base, so their log-probabilities are known")
        mask = batch.response_mask_BT
        rows: dict[str, Any] = {
            "log_p": (held_out.log_p_BT * mask).sum(1),
            "log_q": (held_out.log_q_BT * mask).sum(1),
            "score": batch.score_B,
            "accepted": batch.score_B > 0.5 if batch.held_out is None else batch.held_out.accepted_B,
            "draw": torch.zeros_like(batch.prompt_of_row_B) if batch.held_out is None else batch.held_out.draw_B,
            "most": [0 if batch.held_out is None else batch.held_out.most] * batch.num_rows,
        }
        if held_out.log_r_BT is not None and held_out.consistency_B is not None:
            last_B = mask.sum(1) - 1
            log_r = held_out.log_r_BT.float()
            rows |= {
                "end": log_r.gather(1, last_B[:, None])[:, 0],
                "half": log_r.gather(1, (last_B // 2)[:, None])[:, 0],
                "consistency": held_out.consistency_B,
                "links": held_out.num_links_B,
                "r": [row[keep.bool()].exp().clamp(0, 1).tolist() for row, keep in zip(log_r, mask, strict=True)],
            }
        columns = [value.tolist() if isinstance(value, Tensor) else value for value in rows.values()]
        names = _names(batch)
        for prompt, row in zip(batch.prompt_of_row_B.tolist(), zip(*columns, strict=True), strict=True):
            self._prompts.setdefault(names[prompt], []).append(dict(zip(rows, row, strict=True)))

    def compute(self) -> dict[str, float]:
        """Compute the metrics over all processes; NaN where undefined, and none of R for a method without R."""
        prompts = list(self._gathered().values())
        found = self.distance(prompts)
        numbers = {
            "kl_to_optimum": found.kl.mean,
            "kl_to_optimum_low": found.kl.low,
            "kl_to_optimum_high": found.kl.high,
            "kl_prompts_unresolved": float(found.unresolved),
            "gap_closed": found.gap_closed.mean,
            "gap_closed_low": found.gap_closed.low,
            "gap_closed_high": found.gap_closed.high,
        }
        if found.wanted is not None:
            numbers["kl_rollouts_wanted"] = float(found.wanted)
        drawn = [[row for row in rows if not row["draw"]] for rows in prompts]
        return numbers | (_about_r(drawn) if drawn and "r" in drawn[0][0] else {})

    def distance(self, prompts: Sequence[Sequence[Mapping[str, Any]]] | None = None) -> Distance:
        """Estimate the distance to q* over all processes."""
        prompts = list(self._gathered().values()) if prompts is None else prompts
        return distance([_draws(rows) for rows in prompts])

    def _gathered(self) -> dict[tuple[int, ...], list[dict[str, Any]]]:
        everyone: list[Any] = [self._prompts]
        if dist.is_available() and dist.is_initialized():
            everyone *= dist.get_world_size()
            dist.all_gather_object(everyone, self._prompts)
        merged: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for part in everyone:
            for prompt, rows in part.items():
                merged.setdefault(prompt, rows)
        # The order must not depend on the number of processes, since bins of equal size break ties by it.
        return dict(sorted(merged.items()))


def _names(batch: RolloutBatch) -> list[tuple[int, ...]]:
    """Return what tells the prompts of a batch apart: positions in the task, since prompts may share their text."""
    if batch.prompt_index_P is not None:
        return [(index,) for index in batch.prompt_index_P.tolist()]
    pairs = zip(batch.prompt_ids_PS, batch.prompt_mask_PS.bool(), strict=True)
    return [tuple(ids_S[mask_S].tolist()) for ids_S, mask_S in pairs]


def _draws(rows: Sequence[Mapping[str, Any]]) -> PromptDraws:
    """Return the draws of a prompt from its rows."""
    accepted = [row for row in rows if row["accepted"]]
    return PromptDraws(
        drawn=sum(not row["draw"] for row in rows),
        log_ratios=[row["log_p"] - row["log_q"] for row in accepted],
        first=next((row["draw"] for row in rows if row["draw"]), None),
        most=rows[0]["most"],
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _column(rows: list[dict[str, Any]], name: str) -> Tensor:
    return torch.tensor([row[name] for row in rows])


def _about_r(prompts: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Compute the quality and the consistency of the predicted R."""
    aucs, halves, consistency, links = [], [], [], []
    predicted, observed = [], []
    for rows in prompts:
        score = _column(rows, "score")
        aucs += [auc for auc in [pairwise_auc(_column(rows, "end"), score)] if auc is not None]
        halves += [auc for auc in [pairwise_auc(_column(rows, "half"), score)] if auc is not None]
        consistency.append(float(_column(rows, "consistency").mean()))
        links.append(float(_column(rows, "links").float().mean()))
        for row in rows:
            predicted += row["r"]
            observed += [row["score"]] * len(row["r"])
    return {
        "r_auc_within_prompt": _mean(aucs),
        "r_auc_within_prompt_half": _mean(halves),
        "r_calibration_error": calibration_error(torch.tensor(predicted), torch.tensor(observed)),
        "forward_consistency": _mean(consistency),
        "forward_consistency_per_token": _mean(consistency) / max(1.0, _mean(links)),
    }
