"""Rules about rollouts: the proposal, the number of rounds, and weights that fit them."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.settings.derived import uses_rollouts
from workbench.settings.loaded import Loaded, said


def proposal(loaded: Loaded) -> Iterator[str]:
    """Require weights that correct for the proposal of the rollouts."""
    rollouts, targets = loaded.config.rollouts, loaded.config.targets
    if rollouts.engine != "local":
        yield from _engine(loaded)
    if rollouts.source == "beam":
        yield from _beam(loaded)
        return
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "rounds": 1}
    changed = [name for name, value in off.items() if getattr(rollouts, name) != value]
    if changed and targets.weights == "uniform":
        fit = "balance" if rollouts.rounds > 1 else "importance"
        yield f"{said(loaded, f'rollouts.{changed[0]}')}: the proposal is not the base, so set targets.weights={fit}"
    if rollouts.rounds > 1:
        yield from _rounds(loaded)
    if targets.complement and targets.weights != "likelihood":
        yield f"{said(loaded, 'targets.complement')}: belongs to targets.weights=likelihood"
    if targets.complement and changed:
        yield (
            f"{said(loaded, f'rollouts.{changed[0]}')}: targets.complement needs rollouts from the base; "
            "set targets.complement=false"
        )


def _engine(loaded: Loaded) -> Iterator[str]:
    """Require what makes rollouts of a server usable: a URL, plain sampling, and weights by its own probabilities."""
    rollouts, targets = loaded.config.rollouts, loaded.config.targets
    engine = said(loaded, "rollouts.engine")
    if not uses_rollouts(loaded.config):
        source = f"method={loaded.config.method} with sft_data=references"
        yield f"{engine}: {source} samples nothing to train on"
    if rollouts.url is None:
        yield f"{engine}: name the server, for example rollouts.url=http://localhost:8000"
    elif not rollouts.url.startswith(("http://", "https://")):
        yield f"{said(loaded, 'rollouts.url')}: begins with http:// or https://"
    for name, value in {"source": "sample", "top_k": 0, "top_p": 1.0}.items():
        if getattr(rollouts, name) != value:
            yield f"{said(loaded, f'rollouts.{name}')}: not with rollouts.engine=openai; leave it at {value}"
    if targets.weights not in ("importance", "balance"):
        yield f"{engine}: a server's probabilities are not quite the base's, so set targets.weights=importance"


def _beam(loaded: Loaded) -> Iterator[str]:
    """Require the likelihood weights and the plain base for beam search, which has no density to weigh by."""
    rollouts, targets = loaded.config.rollouts, loaded.config.targets
    if targets.weights != "likelihood":
        yield f"{said(loaded, 'rollouts.source')}: a search draws nothing, so set targets.weights=likelihood"
    if targets.complement:
        yield f"{said(loaded, 'targets.complement')}: needs draws from the base, and rollouts.source is beam"
    for name, value in {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "rounds": 1}.items():
        if getattr(rollouts, name) != value:
            yield f"{said(loaded, f'rollouts.{name}')}: ignored by rollouts.source=beam; leave it at {value}"


def _rounds(loaded: Loaded) -> Iterator[str]:
    config, rollouts = loaded.config, loaded.config.rollouts
    if not uses_rollouts(config):
        source = f"method={config.method} with sft_data=references"
        yield f"{said(loaded, 'rollouts.rounds')}: {source} samples nothing to train on"
    if config.targets.weights == "likelihood":
        yield f"{said(loaded, 'targets.weights')}: likelihood belongs to one round; take balance"
    if config.optim.steps * rollouts.until < rollouts.rounds:
        steps = f"optim.steps={config.optim.steps} * rollouts.until={rollouts.until:g}"
        yield f"{said(loaded, 'rollouts.rounds')}: more than {steps}"
    if rollouts.per_prompt < 2 * rollouts.rounds:
        yield (
            f"{said(loaded, 'rollouts.per_prompt')}: a round has to have 2 rollouts for every prompt, so give at "
            f"least {2 * rollouts.rounds} for rollouts.rounds={rollouts.rounds}"
        )
