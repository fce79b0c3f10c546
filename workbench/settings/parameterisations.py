"""The table of parameterisations, the sets of weights that can be trained, with their settings and without torch.

A parameterisation is a class in a file of its own (dinado/parameters/) and a row here. Any method that defines a policy
can train any row that is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.settings.fields import BELOW_ONE, FRACTION, POSITIVE, setting


@dataclass
class NetworkConfig:
    """The oracle network: a small causal transformer on the base's hidden states (nado, dinado_soft, dinado_hard)."""

    layers: int = setting(2, "Transformer layers.", POSITIVE)
    width: int = setting(256, "Hidden width.", POSITIVE)
    heads: int = setting(4, "Attention heads.", POSITIVE)
    taps: list[float] = setting(
        [1.0],
        "Depths of the base whose hidden states are read, as fractions: 0 the token embeddings, 1 the last layer.",
        FRACTION,
    )
    head: Literal["free", "tied"] = setting(
        "free",
        "Vocabulary head: a matrix of its own, or the base's output embeddings behind a learned projection.",
    )
    pointer: bool = setting(
        False, "Add a pointer that raises or lowers tokens of the prompt and of the text so far (tied head only)."
    )


@dataclass
class LoraConfig:
    """Low-rank adapters on the base (dinado_merge, sft, and dinado_hard with `parameters=lora`)."""

    r: int = setting(16, "Rank.", POSITIVE)
    alpha: float = setting(32.0, "Scale; the update is alpha / r * B A.", POSITIVE)
    dropout: float = setting(0.0, "Dropout on the adapter's input.", BELOW_ONE)
    targets: str | list[str] = setting("all-linear", "Module names to adapt, or `all-linear`.")


@dataclass(frozen=True)
class Parameterisation:
    """A row of the table of parameterisations.

    Attributes:
        name: value of the setting ``parameters``, and name of the section with its settings.
        summary: what is trained, as docs/methods.md prints it.
        score: what its score is, as docs/methods.md prints it.
        module: ``module:class`` of its implementation.
        policy: whether it is a language model that decodes alone; an oracle network needs the base beside it.
        frozen_base: whether the base's own weights stay as they are.
        adapter: whether its weights are an adapter that peft loads.
        settings: dataclass of its section; None for one without settings.
    """

    name: str
    summary: str
    score: str
    module: str
    policy: bool = True
    frozen_base: bool = True
    adapter: bool = False
    settings: type | None = None

    @property
    def exports(self) -> tuple[str, ...]:
        """The kinds of folders that ``export.py`` can write of a run; the first is the default."""
        return (*(("merged",) if self.policy else ()), *(("adapter",) if self.adapter else ()), "controlled")


PARAMETERISATIONS: dict[str, Parameterisation] = {
    row.name: row
    for row in (
        Parameterisation(
            name="network",
            summary="a small causal transformer that reads the frozen base's hidden states, prompt included",
            score="its output, 0 at the start",
            module="dinado.parameters.network:Network",
            policy=False,
            settings=NetworkConfig,
        ),
        Parameterisation(
            name="lora",
            summary="adapters inside the base; the base is the same weights with the adapters off",
            score="`log q_i(v) - log p_i(v)`",
            module="dinado.parameters.lora:Lora",
            adapter=True,
            settings=LoraConfig,
        ),
        Parameterisation(
            name="full",
            summary="a copy of the base",
            score="`log q_i(v) - log p_i(v)`",
            module="dinado.parameters.full:Full",
            frozen_base=False,
        ),
    )
}
