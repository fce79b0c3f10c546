"""DiNADO-Merge: the ratios are log q - log p of a policy that decodes alone (Lu et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dinado.parameters.parameterisation import Scored
from lightning_modules.dinado_soft import DinadoSoft


class DinadoMerge(DinadoSoft):
    """DiNADO-Soft with scores from a policy (base + LoRA, or a full copy) and the norm read from the base's states.

    A base without weights to adapt (exact_world) gets a causal network on top as its policy. That base depends on the
    last token only, so its norm is read from the network's states; no gradient flows into them, as with the base's.
    """

    def norm_states(self, scored: Scored) -> Sequence[Tensor]:
        """Return the states detached, so that the norm head does not train them."""
        return [state.detach() for state in super().norm_states(scored)]
