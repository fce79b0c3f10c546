"""A small random case of vocabulary statistics, and the same by the plain formulas over the whole vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dinado.objectives.reduction import Head
from dinado.objectives.vocabulary import (
    VocabularyStatistics,
    vocabulary_statistics,
)

B, T, V, D, E = 3, 5, 11, 6, 4
LINKS = ("log_ratio", "identity", "logsigmoid")
LENGTHS = (5, 1, 3)


class Case:
    """Random states, heads and tokens, the same at every construction."""

    def __init__(self, sharpness: float = 2.0) -> None:
        stream = torch.Generator().manual_seed(5)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=stream)

        self.base_BTD, self.own_BTE = draw(B, T, D), draw(B, T, E).requires_grad_()
        self.base_head = Head(draw(V, D) * sharpness, draw(V), 0.7)
        self.own_weight = draw(V, E).requires_grad_()
        self.own_bias = draw(V).requires_grad_()
        self.own_head = Head(self.own_weight, self.own_bias, 1.3)
        self.tokens_BT = torch.randint(V, (B, T), generator=stream)
        self.mask_BT = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()
        self.trained = (self.own_BTE, self.own_weight, self.own_bias)

    def statistics(self, link: str, **settings: object) -> VocabularyStatistics:
        return vocabulary_statistics(
            self.base_BTD, self.base_head, self.own_BTE, self.own_head, self.tokens_BT, self.mask_BT, link, **settings
        )

    def log_p_BTV(self) -> Tensor:
        head = self.base_head
        return (0.7 * (self.base_BTD.double() @ head.weight_VD.T.double() + head.bias_V.double())).log_softmax(-1)

    def score_BTV(self, link: str) -> Tensor:
        """The definition of each link, in float64."""
        u = 1.3 * (self.own_BTE.double() @ self.own_weight.T.double() + self.own_bias.double())
        if link == "log_ratio":
            return u.log_softmax(-1) - self.log_p_BTV()
        return u if link == "identity" else -torch.log1p(torch.exp(-u))

    def plain(self, link: str, support: int = 0) -> VocabularyStatistics:
        log_p, score, column = self.log_p_BTV(), self.score_BTV(link), self.tokens_BT[..., None]
        allowed = torch.ones_like(score, dtype=torch.bool)
        if support:
            likeliest = log_p.argsort(-1, descending=True)[..., :support]
            allowed = torch.zeros_like(allowed).scatter(-1, likeliest, True)
        columns = (
            log_p.gather(-1, column)[..., 0],
            score.gather(-1, column)[..., 0],
            (log_p.exp() * score.exp()).sum(-1).log(),
            score.masked_fill(~allowed, -math.inf).max(-1).values,
        )
        return VocabularyStatistics(*(c * self.mask_BT for c in columns))
