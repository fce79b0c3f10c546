"""The numbers of a run: their names for readers, which way is better, and where they are shown.

The module does not import torch, so that reports read the same rows as the tables of a run.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One number of a run.

    Attributes:
        key: its name in ``metrics.jsonl``.
        label: its name in tables.
        better: 1 if more is better, -1 if less is, 0 if it depends.
        digits: number of digits after the point.
        unit: unit or denominator, for axes.
        curve: its name over a curve; empty where no curve is drawn.
        in_table: whether the report's table has a column for it.
        in_final: whether the table at the end of a run has one too.
    """

    key: str
    label: str
    better: int = 0
    digits: int = 3
    unit: str = ""
    curve: str = ""
    in_table: bool = False
    in_final: bool = False


def _result(key: str, label: str, better: int, digits: int = 3, unit: str = "", curve: str = "") -> Measure:
    return Measure(key, label, better, digits, unit, curve, in_table=True, in_final=True)


def _curve(key: str, label: str, unit: str) -> Measure:
    return Measure(key, label, unit=unit, curve=label)


MEASURES = (
    _result("val/success", "success", 1, unit="share of samples", curve="success"),
    _result("val/coverage", "coverage", 1, unit="share of words"),
    _result("val/kl_to_optimum", "KL(q*||q)", -1, unit="nats per response", curve="KL to the optimum, KL(q*||q)"),
    _result("val/gap_closed", "gap closed", 1, unit="share"),
    _result("val/texts_per_exact_text", "texts per exact text", -1, 1, unit="texts"),
    _result("val/kl_from_base", "KL(q||p)", -1, unit="nats per response"),
    _result("val/r_calibration_error", "R error", -1, unit="probability", curve="calibration error of R"),
    _result("val/r_auc_within_prompt", "R AUC", 1),
    _result("val/distinct_2", "distinct-2", 1, unit="share of bigrams"),
    _result("val/truncated", "cut off", -1, unit="share of samples"),
    _result("val/bleu4", "BLEU-4", 1, 1),
    _result("val/rouge_l", "ROUGE-L", 1, 1),
    _result("val/cider", "CIDEr", 1, 2),
    Measure(
        "weights/ess_fraction",
        "ESS",
        1,
        unit="effective sample size, share of rollouts",
        curve="effective sample size",
        in_table=True,
    ),
    _curve("reg/forward_consistency", "forward consistency", "nats per response"),
    _curve("reg/forward_consistency_per_token", "forward consistency, per token", "nats per token"),
    _curve("norm/log_beta_mean", "norm log β, mean", "nats"),
    _curve("norm/log_beta_std", "norm log β, spread", "nats"),
    _curve("norm/log_ratio_max", "ratio log r, largest", "nats"),
    _curve("norm/log_ratio_l2", "ratio log r, root mean square", "nats"),
    _curve("norm/adapter_fro", "size of the change of the weights", "Frobenius norm"),
    _curve("rollouts/success", "success of the rollouts trained on", "share of rollouts"),
    _curve("train/loss", "training loss", "nats"),
    Measure("val/kl_prompts_unresolved", "unresolved prompts", -1, 0),
    Measure("val/r_auc_within_prompt_half", "R AUC, halfway", 1),
)
FRONTIERS = ("val/kl_from_base", "val/bleu4", "val/cider")
"""Measures of the cost of control, against which success is drawn."""
CURVES = (
    "reg/forward_consistency",
    "reg/forward_consistency_per_token",
    "norm/log_beta_mean",
    "norm/log_beta_std",
    "norm/log_ratio_max",
    "norm/log_ratio_l2",
    "norm/adapter_fro",
    "val/kl_to_optimum",
    "val/success",
    "rollouts/success",
    "val/r_calibration_error",
    "weights/ess_fraction",
    "train/loss",
)
"""Curves in the order in which they are drawn."""


def measure(key: str) -> Measure:
    """Return the measure of a key; an unknown key is its own label."""
    return next((known for known in MEASURES if known.key == key), Measure(key, key))
