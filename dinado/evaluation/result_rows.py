"""One row of the final table: the reported numbers of a model's samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dinado.evaluation.judged_samples import JudgedSamples
from dinado.metrics.diversity import distinct_n
from dinado.metrics.intervals import mean_interval, rate_interval
from dinado.metrics.text import text_metrics
from dinado.oracles.lexical import LexicalOracle, has_concepts

Row = dict[str, float]


def row_of(samples: JudgedSamples, *, with_text_metrics: bool) -> Row:
    """Compute success, control cost, diversity and text quality of a model, with 95 % intervals clustered by prompt."""
    rates = [_mean(group) for group in samples.per_prompt(samples.score)]
    # With one prompt, prompts cannot be resampled, and the intervals are over its samples.
    single = len(rates) == 1
    success = rate_interval(rates, len(samples.score) // max(1, len(rates)))
    costs = [q - p for q, p in zip(samples.log_q, samples.log_p, strict=True)]
    kl = mean_interval(costs if single else [_mean(group) for group in samples.per_prompt(costs)])
    row: Row = {
        "val/success": success.mean,
        "val/success_low": success.low,
        "val/success_high": success.high,
        "val/kl_from_base": kl.mean,
        "val/kl_from_base_low": kl.low,
        "val/kl_from_base_high": kl.high,
        "val/distinct_2": distinct_n(samples.texts, 2),
        "val/truncated": 1.0 - _mean([float(done) for done in samples.finished]),
        "val/tokens": _mean([float(n) for n in samples.num_tokens]),
    }
    if all(has_concepts(prompt) for prompt in samples.prompts):
        hits, total = LexicalOracle().coverage(samples.prompts, samples.texts)
        row["val/coverage"] = hits / total
    if with_text_metrics:
        row |= {f"val/{k}": v for k, v in text_metrics(samples.texts, [p.references for p in samples.prompts]).items()}
    return row


def best_of(samples: JudgedSamples, n: int) -> JudgedSamples:
    """Select the best-scored of every ``n`` samples of a prompt (rejection), in disjoint groups.

    The log-probability of a text under best-of-n has no closed form, so the row reports no KL.
    """
    chosen = JudgedSamples()
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(samples.prompts):
        groups.setdefault(prompt.id, []).append(index)
    for indices in groups.values():
        for start in range(0, max(1, len(indices) - n + 1), n):
            best = max(indices[start : start + n], key=lambda i: samples.score[i])
            for name, values in vars(samples).items():
                getattr(chosen, name).append(values[best])
    return chosen


def texts_per_exact_text(row: Row) -> Row:
    """Return how many texts of a model it takes to get one text of q* by rejection or resampling, exp KL(q*||q).

    It is the geometric mean over prompts; for the base it is 1 / R(c).
    """
    ends = ("", "_low", "_high")
    return {
        f"val/texts_per_exact_text{end}": math.exp(row[f"val/kl_to_optimum{end}"])
        for end in ends
        if row.get(f"val/kl_to_optimum{end}", math.inf) < 700
    }


def without_kl(row: Row) -> Row:
    """Return the row with its KL entries set to NaN."""
    return {key: math.nan if "/kl_" in key else value for key, value in row.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
