"""DiNADO-Merge: the ratios are log q - log p of a policy that decodes alone (Lu et al., ICML 2024)."""

from __future__ import annotations

from lightning_modules.dinado_soft import DinadoSoft


class DinadoMerge(DinadoSoft):
    """As Soft, with scores from a policy (base + LoRA, or a full copy) and the norm read from the base's states."""

    norm_input = "base"
