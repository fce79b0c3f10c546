"""What ``generate.py --explain`` adds to records: R, the norm and both models' next tokens along each text.

Axes: B texts, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dinado.batch import RolloutBatch
from dinado.evaluation.explained_tokens import Candidate, ExplainedToken, explain_tokens
from dinado.evaluation.judged_samples import pieces
from dinado.prompt import Prompt
from engine.generation import Generation, Written
from lightning_modules.rollout_method import RolloutMethod
from lightning_modules.value_method import ValueMethod
from workbench.settings.derived import needs_root

ROOT = (1e-6, 1 - 1e-6)
"""Range of a success rate R(c), whose log-odds are finite."""


def explained(
    generation: Generation, prompts: Sequence[Prompt], answers: Sequence[Sequence[Written]]
) -> list[list[Written]]:
    """Add ``explained`` to what the records of some texts say; None for an empty text."""
    rows = [(place, answer) for place, some in enumerate(answers) for answer in some]
    full = [row for row in rows if len(row[1].tokens)]
    blocks = iter(_blocks(generation, prompts, full) if full else ())
    added = [
        answer._replace(more=answer.more | {"explained": next(blocks) if len(answer.tokens) else None})
        for _, answer in rows
    ]
    each = iter(added)
    return [[next(each) for _ in some] for some in answers]


@torch.no_grad()
def _blocks(
    generation: Generation, prompts: Sequence[Prompt], rows: Sequence[tuple[int, Written]]
) -> list[dict[str, Any]]:
    (method,) = generation.methods
    base = method.base
    ids_PS, mask_PS = (tensor.to(base.device) for tensor in base.encode_prompts(prompts))
    batch = RolloutBatch.unjudged(
        ids_PS, mask_PS, [place for place, _ in rows], [list(answer.tokens) for _, answer in rows]
    )
    found = explain_tokens(method.scores, batch, alpha=generation.model.alpha)
    values = _values(method, batch, [answer.more.get("log_z") for _, answer in rows], found)
    return [
        _columns(generation, answer, tokens) | along
        for (_, answer), tokens, along in zip(rows, found, values, strict=True)
    ]


def _columns(generation: Generation, answer: Written, tokens: Sequence[ExplainedToken]) -> dict[str, Any]:
    """Return what a record says of every token, as columns; a candidate is its text, p and q."""
    base = generation.model.base

    def shown(candidates: Sequence[Candidate]) -> list[list[Any]]:
        return [[base.tokenizer.decode([one.token]), round(one.p, 5), round(one.q, 5)] for one in candidates]

    return {
        "tokens": pieces(base, answer.tokens),
        **{name: [round(getattr(one, name), 4) for one in tokens] for name in ("log_p", "log_q", "kl")},
        "changed": [one.changed for one in tokens],
        "likeliest_p": [shown(one.likeliest_p) for one in tokens],
        "likeliest_q": [shown(one.likeliest_q) for one in tokens],
    }


def _values(
    method: RolloutMethod, batch: RolloutBatch, log_z: Sequence[float | None], found: Sequence[Sequence[ExplainedToken]]
) -> list[dict[str, Any]]:
    """Return R and the norm along each text; empty for a method that predicts none.

    A run that takes R(c) from its rollouts (``targets.root=store``) knows none for a new prompt: with ``--exact`` it is
    estimated by Z, else R is given relative to it where the method telescopes, and not at all where it does not.
    """
    if not isinstance(method, ValueMethod):
        return [{} for _ in found]
    batch.log_p_BT = torch.zeros_like(batch.known_log_p_BT)
    for row, tokens in enumerate(found):
        batch.log_p_BT[row, : len(tokens)] = torch.tensor([one.log_p for one in tokens], device=batch.log_p_BT.device)
    stored = needs_root(method.config)
    known = [not stored or value is not None for value in log_z]
    root_B = [min(max(math.exp(value), ROOT[0]), ROOT[1]) if value is not None else 0.5 for value in log_z]
    batch.root_B = torch.tensor(root_B, device=batch.response_BT.device)
    details = method.terms(batch).details
    log_r_BT, log_v_BT = (values.float().cpu() for values in details.values)
    log_beta_BT: Tensor | None = method.norm(details.scored, batch).float().cpu() if method.has_step_norm else None
    rows = []
    for row, tokens in enumerate(found):
        log_r, log_root = log_r_BT[row, : len(tokens)], log_v_BT[row, 0]
        if known[row]:
            one: dict[str, Any] = {"r_prompt": _rounded(log_root)[0], "r": _rounded(log_r)}
        elif method.telescopes:
            one = {"r_over_r_prompt": [round(value, 4) for value in (log_r - log_root).exp().tolist()]}
        else:
            one = {}
        if known[row] and log_beta_BT is not None:
            one["log_beta"] = [round(value, 4) for value in log_beta_BT[row, : len(tokens)].tolist()]
        rows.append(one)
    return rows


def _rounded(log_r: Tensor) -> list[float]:
    """Return R; an unbounded prediction above 1 is shown as 1."""
    return [round(value, 4) for value in log_r.reshape(-1).clamp(max=0).exp().tolist()]
