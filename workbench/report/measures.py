"""The numbers that are compared: what they are called, which way is better, and which are drawn."""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """One number of a run.

    Attributes:
        key: its name in ``metrics.jsonl``.
        label: its name for readers.
        better: 1 if more is better, -1 if less is, 0 if it depends.
        digits: after the point.
        unit: what it is counted in, for axes.
    """

    key: str
    label: str
    better: int = 0
    digits: int = 3
    unit: str = ""


TABLE = (
    Measure("val/success", "success", 1, unit="share of samples"),
    Measure("val/coverage", "coverage", 1, unit="share of words"),
    Measure("val/kl_to_optimum", "KL(q*‖q)", -1, unit="nats per response"),
    Measure("val/gap_closed", "gap closed", 1, unit="share"),
    Measure("val/kl_from_base", "KL(q‖p)", -1, unit="nats per response"),
    Measure("val/r_calibration_error", "R error", -1, unit="probability"),
    Measure("val/r_auc_within_prompt", "R AUC", 1),
    Measure("val/distinct_2", "distinct-2", 1, unit="share of bigrams"),
    Measure("val/truncated", "cut off", -1, unit="share of samples"),
    Measure("val/bleu4", "BLEU-4", 1, 1),
    Measure("val/rouge_l", "ROUGE-L", 1, 1),
    Measure("val/cider", "CIDEr", 1, 2),
    Measure("weights/ess_fraction", "ESS", 1, unit="effective sample size, share of rollouts"),
)
CURVES = (
    Measure("reg/forward_consistency", "forward consistency", unit="nats per response"),
    Measure("reg/forward_consistency_per_token", "forward consistency, per token", unit="nats per token"),
    Measure("norm/log_beta_mean", "norm log β, mean", unit="nats"),
    Measure("norm/log_beta_std", "norm log β, spread", unit="nats"),
    Measure("norm/log_ratio_max", "ratio log r, largest", unit="nats"),
    Measure("norm/log_ratio_l2", "ratio log r, root mean square", unit="nats"),
    Measure("norm/adapter_fro", "size of the change of the weights", unit="Frobenius norm"),
    Measure("val/kl_to_optimum", "KL to the optimum, KL(q*‖q)", unit="nats per response"),
    Measure("val/success", "success", unit="share of samples"),
    Measure("rollouts/success", "success of the rollouts trained on", unit="share of rollouts"),
    Measure("val/r_calibration_error", "calibration error of R", unit="probability"),
    Measure("weights/ess_fraction", "effective sample size", unit="share of rollouts"),
    Measure("train/loss", "training loss", unit="nats"),
)
FRONTIERS = ("val/kl_from_base", "val/bleu4", "val/cider")
"""What success is drawn against: what control cost."""


def measure(key: str) -> Measure:
    """The measure of a key, itself as label when it has none."""
    return next((known for known in (*TABLE, *CURVES) if known.key == key), Measure(key, key))
