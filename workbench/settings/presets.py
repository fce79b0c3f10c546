"""Settings that one setting brings along: the published objective as ``objective.masks=official``.

A preset is a layer of its own, under the values that the same file or command line sets, over all layers before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Layer = tuple[str, Sequence[tuple[str, Any]]]

KEY, VALUE = "objective.masks", "official"
LABEL = f"{KEY}={VALUE}"

_SHARED: dict[str, Any] = {
    "objective.oracle.token_ce": 0.0,
    "objective.oracle.terminal_ce": 1.0,
    "objective.oracle.value_ce": 0.0,
    "objective.consistency.weight": 1.0,
    "objective.consistency.direction": "expected_first",
    "objective.consistency.detach": "none",
    "objective.consistency.divergence": "bernoulli",
    "objective.path.weight": 0.0,
    "objective.path.loss": "bernoulli",
    "objective.lookahead.weight": 0.0,
    "objective.likelihood.weight": 0.0,
    "objective.norm.kind": "linf",
    "objective.norm.support": 0,
    "objective.norm.input": "base",
    "objective.norm.taps": [1.0],
    "network.head": "free",
    "network.pointer": False,
    "network.taps": [1.0],
    "targets.root": "learned",
    "targets.positives_share": 0.0,
    "optim.norm_steps": 0,
}
_NADO = {"objective.oracle.token_ce": 1.0, "objective.oracle.terminal_ce": 0.0, "objective.consistency.prompt": True}


def with_presets(layers: Sequence[Layer], method: str) -> list[Layer]:
    """Return the layers, with what ``objective.masks=official`` brings along if the last value of that key is this one.

    Args:
        layers: labels and settings, later ones over earlier ones.
        method: the method that is trained; the published objectives differ.
    """
    chosen = [(place, value) for place, (_, values) in enumerate(layers) for key, value in values if key == KEY]
    if not chosen or chosen[-1][1] != VALUE:
        return list(layers)
    place = chosen[-1][0]
    brought = _SHARED | (_NADO if method == "nado" else {})
    return [*layers[:place], (LABEL, list(brought.items())), *layers[place:]]
