"""Settings of decoding that ``generate.py`` takes on its command line; no torch is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decoding:
    """How texts are decoded.

    Attributes:
        mode: ``sample``, ``greedy`` or ``beam``.
        num: texts for each prompt.
        beams: width of the beam search.
        alpha, max_new_tokens: None takes those of the run.
        exact: K texts to choose each one among; None writes texts as they come.
        budget: the most texts to draw for one with ``exact``.
        explain: say of every token what control did to it.
        verify: leave a chosen text that the oracle rejects empty.
    """

    mode: str = "sample"
    num: int = 1
    beams: int = 8
    alpha: float | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    exact: int | None = None
    budget: int | None = None
    verify: bool = False
    explain: bool = False
