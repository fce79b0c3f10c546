"""Load a causal model and its tokenizer from a folder or a hub, whole and without running code that comes with it."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dinado.bases.peft_layers import fold_adapters
from dinado.errors import DataError

log = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
MOST_CHANGE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest change of a logit that folding may cause, relative to the largest logit; 0.1 for shorter types."""


class Source(NamedTuple):
    """Where a model was loaded from, so that it can be loaded again.

    Attributes:
        path: absolute path of a folder, or a hub name.
        revision: of the hub, the resolved commit where it is known.
        dtype: storage type of the weights.
    """

    path: str
    revision: str | None
    dtype: str


def source_of(model: Any, path_or_name: str, revision: str | None, dtype: str) -> Source:
    """Return where a model has been loaded from by :func:`load_causal`."""
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        return Source(str(folder.resolve()), None, dtype)
    return Source(path_or_name, getattr(model.config, "_commit_hash", None) or revision, dtype)


def load_causal(path_or_name: str, *, revision: str | None, dtype: str) -> tuple[Any, Any]:
    """Load a Hugging Face causal model and its tokenizer.

    A folder with a PEFT adapter is loaded with its base, and the adapter is folded into the weights.

    Args:
        path_or_name: folder or hub name.
        revision: of the hub.
        dtype: storage type of the weights, such as ``float32``.

    Raises:
        DataError: the model cannot be read, lacks weights, has weights of another shape, or brings code of its own.
    """
    from safetensors import SafetensorError

    reason: Exception
    try:
        return _load(path_or_name, revision, dtype)
    except DataError:
        raise
    # Files that do not fit each other fail in as many ways as transformers and its back ends have.
    except (OSError, ArithmeticError, LookupError, ImportError, AttributeError, TypeError) as error:
        reason = error
    except (ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = error
    text = " ".join(str(reason).strip().split("\n")[0].split()) or type(reason).__name__
    raise DataError(
        f"base.name={path_or_name}: cannot be loaded ({text}); give a folder or a hub name, or use "
        "smollm2-135m-instruct, which needs no hub"
    )


def _load(name: str, revision: str | None, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer
    from transformers.utils import find_adapter_config_file

    # Code in a folder or repository is never run, and nobody is asked: a question on stdin may find an answer there.
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    adapter = find_adapter_config_file(name, revision=revision)
    if adapter is None:
        return _load_model(name, revision, dtype), tokenizer
    # transformers reports the missing weights of the adapter alone, so the base is loaded by itself.
    with ExitStack() as stack:
        if (Path(name) / MODEL_CONFIG).is_file():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for path in Path(name).resolve().iterdir():
                if path.name != ADAPTER_CONFIG:
                    (folder / path.name).symlink_to(path)
            model = _load_model(str(folder), None, dtype, name)
        else:
            base = json.loads(Path(adapter).read_text("utf-8"))["base_model_name_or_path"]
            model, _ = load_causal(base, revision=None, dtype=dtype)
    names = getattr(model, "_weight_conversions", None)
    found = model.load_adapter(name, adapter_kwargs={"revision": revision})
    model._weight_conversions = names  # load_adapter puts the adapter's in their place, and saved copies follow them
    _check_weights(name, found.missing_keys, found.mismatched_keys)
    _fold(name, model)
    return model, tokenizer


def _load_model(path: str, revision: str | None, dtype: str, name: str | None = None) -> Any:
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        path,
        revision=revision,
        dtype=getattr(torch, dtype),
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
    )
    _check_weights(name or path, found["missing_keys"], found["mismatched_keys"])
    if unused := sorted(found["unexpected_keys"]):
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        log.warning("%s: weights in its files that the model does not use: %s%s", path, ", ".join(unused[:3]), more)
    return model


def _check_weights(name: str, missing: Iterable[str], mismatched: Iterable[Any]) -> None:
    """Refuse a model whose weights are not all in its files, because missing weights would be random."""
    other = (key if isinstance(key, str) else key[0] for key in mismatched)
    for found, fault in ((missing, "are missing"), (other, "have another shape than the config says")):
        if keys := sorted(found):
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise DataError(
                f"base.name={name}: weights {fault} ({', '.join(keys[:3])}{more}) and would be random; give the folder "
                "of a whole causal language model"
            )


@torch.no_grad()
def _fold(name: str, model: Any) -> None:
    """Fold the adapter that a folder brings into the weights of its base, and check that the model is the same."""
    kinds = {str(getattr(config, "peft_type", "")).rpartition(".")[2] for config in model.peft_config.values()}

    def logits() -> Tensor:
        ids = torch.arange(min(16, model.get_input_embeddings().weight.shape[0]), device=model.device)[None]
        return model.eval()(ids, use_cache=False).logits.float()

    before = logits()
    folded = fold_adapters(model)
    limit = MOST_CHANGE.get(model.dtype, 0.1) * float(before.abs().max())
    if not folded or not float((logits() - before).abs().max()) <= limit:
        raise DataError(
            f"base.name={name}: its adapter ({', '.join(sorted(kinds))}) cannot be folded into the weights; give a "
            "folder in which it has been merged"
        )
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        model.config.get_text_config().tie_word_embeddings = False  # else a saved copy would tie them again
    log.info("%s: the folder's adapter (%s) has been folded into the weights of its base", name, ", ".join(kinds))
