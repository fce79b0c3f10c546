"""The identity of a base: a digest of everything that decides the logits."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import Tensor

VOLATILE = frozenset(
    (
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)
"""Keys of a configuration that change no logit, or are part of the identity in another form."""


def model_digest(model: Any, tokenizer: Any) -> str:
    """Return a hash of a model's class, configuration, attention kernels, dtype and weights, and of its tokenizer."""
    digest = hashlib.sha256()
    digest.update(repr((type(model).__name__, getattr(model.config, "_attn_implementation", None))).encode())
    digest.update(json.dumps(_lasting(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        flat = _plain(tensor).reshape(-1)
        # A few thousand values of each tensor are enough to tell models apart, and cheap to hash.
        probe = flat[:: max(1, flat.numel() // 2048)].float().cpu().numpy()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(probe.tobytes())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(str(getattr(tokenizer, "chat_template", None)).encode())
    return digest.hexdigest()[:16]


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor as numbers; quantised ones that are a class of their own allow little else."""
    quantised = type(tensor.data) is not Tensor and hasattr(tensor, "dequantize")
    return tensor.detach().dequantize() if quantised else tensor.detach()


def _lasting(node: Any) -> Any:
    """Return a nested configuration without its volatile keys."""
    if isinstance(node, dict):
        return {str(key): _lasting(value) for key, value in node.items() if key not in VOLATILE}
    return [_lasting(item) for item in node] if isinstance(node, list | tuple) else node
