"""Rows of the final table in an exact world, with the KL divergence to the known optimum q*."""

from __future__ import annotations

import torch

from dinado.control.controlled_lm import ControlledLM
from dinado.evaluation.result_rows import Row
from dinado.exact import ExactWorld, causal_lm_rows
from dinado.seeding import generator


@torch.no_grad()
def exact_row(world: ExactWorld, model: ControlledLM, num_samples: int, seed: int) -> Row:
    """Compute KL(q*||q) over prefixes of q* and the gap closed; the standard error is 0 if every prefix is visited."""
    log_q_fn = causal_lm_rows(model, [model.base.eos_ids[0]])
    estimate = world.kl_to_optimum(log_q_fn, num_samples, generator(seed, "exact kl"))
    half = 1.96 * estimate.standard_error
    return {
        "val/kl_to_optimum": estimate.mean,
        "val/kl_to_optimum_se": estimate.standard_error,
        "val/kl_to_optimum_low": estimate.mean - half,
        "val/kl_to_optimum_high": estimate.mean + half,
        "val/kl_prefixes": float(estimate.num_prefixes),
        "val/gap_closed": 1.0 - estimate.mean / world.kl_base,
    }


def exact_base_row(world: ExactWorld) -> Row:
    """Return the row of the base, in the same columns."""
    return {"val/success_exact": world.success_rate, "val/kl_to_optimum": world.kl_base, "val/gap_closed": 0.0}
