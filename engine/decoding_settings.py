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
        alphas: strength of each run, or one for all; None takes the runs' own.
        max_new_tokens: None takes that of the runs.
        exact: K texts to choose each one among; None writes texts as they come.
        decoder: how it is chosen: ``sir``, ``smc`` or ``qrs``.
        budget: the most texts to draw for one with ``exact``.
        ess: share of the particles of ``smc`` below whose effective number they are resampled.
        log_beta: log of the beta of ``qrs``.
        explain: say of every token what control did to it.
        verify: leave a chosen text that the oracle rejects empty.
    """

    mode: str = "sample"
    num: int = 1
    beams: int = 8
    alphas: tuple[float, ...] | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    exact: int | None = None
    decoder: str = "sir"
    budget: int | None = None
    ess: float = 0.5
    log_beta: float | None = None
    verify: bool = False
    explain: bool = False
