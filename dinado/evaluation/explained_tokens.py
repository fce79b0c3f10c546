"""What control does at each token of a text: both models' likeliest next tokens, and how far they are apart.

The controlled model is q_i(v) proportional to p_i(v) exp(alpha s_i(v)) at position i after the text so far; alpha = 1
is what was trained. KL_i = KL(q_i || p_i) is in nats. Its sum along a text, averaged over texts of q, is KL(q||p) of
whole texts (the chain rule), as is that of log q_i - log p_i of the tokens themselves.

Axes: B texts, T tokens, N tokens without padding, n of them at once, K candidates, V vocabulary, D and E widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dinado.batch import RolloutBatch
from dinado.objectives import reduction
from dinado.objectives.reduction import link_scores
from dinado.parameters.parameterisation import Parameterisation, VocabularyInputs


class Candidate(NamedTuple):
    """A next token with its probability under the base and under the controlled model."""

    token: int
    p: float
    q: float


@dataclass(frozen=True)
class ExplainedToken:
    """A token of a text.

    Attributes:
        token: its id.
        log_p, log_q: its log-probability under base and controlled model, in nats.
        kl: KL(q_i || p_i) at its position, in nats.
        likeliest_p, likeliest_q: the likeliest tokens of base and controlled model, in descending order.
    """

    token: int
    log_p: float
    log_q: float
    kl: float
    likeliest_p: tuple[Candidate, ...]
    likeliest_q: tuple[Candidate, ...]

    @property
    def log_ratio(self) -> float:
        """log q - log p: above 0 where control made the token likelier."""
        return self.log_q - self.log_p

    @property
    def changed(self) -> bool:
        """Whether the likeliest token of the controlled model is not the likeliest one of the base, or one of them."""
        return self.likeliest_q[0].p < self.likeliest_p[0].p


@torch.no_grad()
def explain_tokens(
    scores: Parameterisation, batch: RolloutBatch, *, alpha: float = 1.0, candidates: int = 5
) -> list[list[ExplainedToken]]:
    """Explain every token of some texts; logits are formed for as many tokens at once as a training step forms.

    Args:
        scores: the trained parameterisation.
        alpha: control strength.
        candidates: number of likeliest tokens of each model.
    """
    inputs = scores.vocabulary_inputs(batch)
    keep_BT = batch.response_mask_BT.bool()
    lengths, tokens_N = keep_BT.sum(1).tolist(), batch.response_BT[keep_BT]
    base_ND, score_NE = inputs.base_BTD[keep_BT], inputs.score_BTE[keep_BT]
    each = iter(list(_explained(inputs, base_ND, score_NE, tokens_N, alpha, candidates)))
    return [[next(each) for _ in range(length)] for length in lengths]


def _explained(
    inputs: VocabularyInputs, base_ND: Tensor, score_NE: Tensor, tokens_N: Tensor, alpha: float, candidates: int
) -> Iterator[ExplainedToken]:
    rows = max(1, reduction.CHUNK_ELEMENTS // len(inputs.base_head.weight_VD))
    for start in range(0, len(tokens_N), rows):
        here = slice(start, start + rows)
        token_n1 = tokens_N[here, None]
        log_p_nV = inputs.base_head.logits(base_ND[here]).log_softmax(1)
        u_nV = inputs.score_head.logits(score_NE[here])
        score_nV = u_nV.log_softmax(1) - log_p_nV if inputs.link == "log_ratio" else link_scores(inputs.link, u_nV)
        log_q_nV = (log_p_nV + alpha * score_nV).log_softmax(1)
        kl_n = (log_q_nV.exp() * (log_q_nV - log_p_nV)).sum(1)
        columns = [log_p_nV.gather(1, token_n1)[:, 0], log_q_nV.gather(1, token_n1)[:, 0], kl_n.clamp(min=0)]
        tops = [_likeliest(of_nV, log_p_nV, log_q_nV, candidates) for of_nV in (log_p_nV, log_q_nV)]
        numbers = (column.tolist() for column in (token_n1[:, 0], *columns))
        for values in zip(*numbers, *tops, strict=True):
            yield ExplainedToken(*values)


def _likeliest(of_nV: Tensor, log_p_nV: Tensor, log_q_nV: Tensor, count: int) -> list[tuple[Candidate, ...]]:
    token_nK = of_nV.topk(min(count, of_nV.shape[1]), 1).indices
    columns = (token_nK, *(log_nV.gather(1, token_nK).exp() for log_nV in (log_p_nV, log_q_nV)))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [tuple(Candidate(*values) for values in zip(*row, strict=True)) for row in rows]
