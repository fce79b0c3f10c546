"""What held-out base rollouts say about a model under training: distance to q*, and how good its R is.

Kept as plain numbers per rollout, gathered over processes as objects keyed by prompt, so nothing is counted twice.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dinado.batch import RolloutBatch
from dinado.metrics.intervals import mean_interval
from dinado.objectives.estimators import calibration_error, kl_to_optimum, pairwise_auc
from dinado.objectives.losses import OracleLoss
from dinado.objectives.values import TokenValues
from dinado.objectives.vocabulary import VocabularyStatistics


class RolloutDiagnostics:
    """Collects held-out rollouts and reduces them to the `val/` numbers that need no sampling."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything collected."""
        self._prompts: dict[tuple[int, ...], list[dict[str, Any]]] = {}

    def update(
        self, batch: RolloutBatch, statistics: VocabularyStatistics, values: TokenValues, loss: OracleLoss
    ) -> None:
        """Add a batch of base rollouts; one without weight only fills up a process that has fewer."""
        if not batch.weight_total:
            return
        mask = batch.response_mask_BT
        log_p_B, log_q_B = (statistics.log_p * mask).sum(1), (statistics.log_q * mask).sum(1)
        last_B = mask.sum(1) - 1
        log_r = values.log_r_BT.float()
        rows = {
            "log_p": log_p_B,
            "log_q": log_q_B,
            "score": batch.score_B,
            "weight": batch.weight_B,
            "end": log_r.gather(1, last_B[:, None])[:, 0],
            "half": log_r.gather(1, (last_B // 2)[:, None])[:, 0],
            "consistency": loss.consistency_B,
            "links": loss.num_links_B,
            "r": [row[keep.bool()].exp().clamp(0, 1).tolist() for row, keep in zip(log_r, mask, strict=True)],
        }
        columns = [value.tolist() if isinstance(value, Tensor) else value for value in rows.values()]
        for prompt, row in zip(batch.prompt_of_row_B.tolist(), zip(*columns, strict=True), strict=True):
            tokens = batch.prompt_ids_PS[prompt][batch.prompt_mask_PS[prompt].bool()]
            self._prompts.setdefault(tuple(tokens.tolist()), []).append(dict(zip(rows, row, strict=True)))

    def compute(self) -> dict[str, float]:
        """Numbers over all processes; NaN where nothing can be said."""
        prompts = list(self._gathered().values())
        kls, aucs, halves, weights, consistency, links = [], [], [], [], [], []
        predicted, observed, gaps = [], [], []
        for rows in prompts:
            column = {key: torch.tensor([row[key] for row in rows]) for key in rows[0] if key != "r"}
            score, weight = column["score"], column["weight"]
            kl = kl_to_optimum(column["log_p"], column["log_q"], score, weight)
            if kl is not None:
                kls.append(kl)
                gaps.append(-math.log(float((weight * score).sum() / weight.sum())))
            aucs += [auc for auc in [pairwise_auc(column["end"], score)] if auc is not None]
            halves += [auc for auc in [pairwise_auc(column["half"], score)] if auc is not None]
            consistency.append(float(column["consistency"].mean()))
            links.append(float(column["links"].float().mean()))
            weights.append(float(weight.sum()))
            for row in rows:
                predicted += row["r"]
                observed += [row["score"]] * len(row["r"])
        kl_interval = mean_interval(kls) if kls else None
        mean_gap = sum(gaps) / len(gaps) if gaps else math.nan
        return {
            "kl_to_optimum": kl_interval.mean if kl_interval else math.nan,
            "kl_to_optimum_low": kl_interval.low if kl_interval else math.nan,
            "kl_to_optimum_high": kl_interval.high if kl_interval else math.nan,
            "kl_prompts_left_out": float(len(prompts) - len(kls)),
            "gap_closed": 1.0 - kl_interval.mean / mean_gap if kl_interval and mean_gap > 0 else math.nan,
            "r_auc_within_prompt": _mean(aucs),
            "r_auc_within_prompt_half": _mean(halves),
            "r_calibration_error": calibration_error(torch.tensor(predicted), torch.tensor(observed))
            if predicted
            else math.nan,
            "forward_consistency": _mean(consistency),
            "forward_consistency_per_token": _mean(consistency) / max(1.0, _mean(links)),
        }

    def _gathered(self) -> dict[tuple[int, ...], list[dict[str, Any]]]:
        everyone: list[Any] = [self._prompts]
        if dist.is_available() and dist.is_initialized():
            everyone *= dist.get_world_size()
            dist.all_gather_object(everyone, self._prompts)
        merged: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for part in everyone:
            for prompt, rows in part.items():
                merged.setdefault(prompt, rows)
        # In an order that does not tell how many processes there are: bins of equal size break ties by it.
        return dict(sorted(merged.items()))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
