"""Export of a trained run as a folder that other programs load: a plain model, an adapter, or a controlled model.

Axes: N rows, L positions, S prompt tokens, T response tokens, V vocabulary.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinado.bases.architecture import quantised_by
from dinado.bases.decoder import Decoder
from dinado.bases.loading import Source
from dinado.bases.plain_model import sampling_settings, save_tokenizer
from dinado.control.controlled_lm import ControlledLM
from dinado.durable import new_folder
from dinado.errors import ConfigError, DataError
from dinado.prompt import Prompt
from dinado.rollouts.sampler import sample, uniforms
from engine.hub_upload import check_upload, upload
from engine.model_card import write_card
from engine.restoring import restore_method
from lightning_modules.callbacks.graceful_stop import interruptible
from lightning_modules.rollout_method import RolloutMethod
from workbench.run_folder import find_run
from workbench.settings.config import Config
from workbench.settings.derived import parameterisation_of, resolved_parameters, task_of
from workbench.settings.loader import from_run_folder

KINDS = ("merged", "adapter", "controlled")
"""What a run can be exported as, the default first."""
LARGEST = 1e-2
"""Largest difference of a log-probability, in nats, that rounding may cause where everything is float32.

A model of 30 layers that is folded differs by about 1e-4; without its adapters, by more than 0.1."""
TEXTS, TOKENS = 4, 16
"""Number and length of the texts on which a folder is compared with the run."""


def export_run(
    run: str, out: Path, kind: str | None, dtype: str | None, repo: str | None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a run as a folder, load it again, and compare its log-probabilities with the run's.

    Args:
        run: folder of the run, or one of its checkpoints.
        out: the folder to write, which does not exist or is empty.
        kind: ``merged``, ``adapter`` or ``controlled``; None takes the first that the run has.
        dtype: storage type of merged weights; None is float32, in which they were trained.
        repo: name on the hub to upload to; None uploads nothing.
        overrides: settings to change, such as the place of a base that has moved.

    Raises:
        ConfigError: the run has no such form, ``out`` cannot be written, or nobody is logged in to the hub.
        DataError: the folder does not compute what the run does.
    """
    found = find_run(run)
    config = from_run_folder(found.path, overrides).config
    kind = chosen_kind(config, kind)
    if dtype is not None and kind != "merged":
        raise ConfigError(f"--dtype: --as {kind} keeps the weights as they were trained; leave it out")
    out = check_out(out)
    if repo is not None:
        check_upload(repo)
    with interruptible(), new_folder(out, _unwritable) as folder:
        difference = _fill(folder, run, kind, dtype or "float32", repo or out.name, overrides)
    record = {"folder": str(out), "kind": kind, "run_dir": str(found.path), "largest_difference": difference}
    return record | {"url": None if repo is None else upload(repo, out)}


def chosen_kind(config: Config, kind: str | None) -> str:
    """Return the kind of folder to write.

    Raises:
        ConfigError: the run cannot be exported as that; the message says as what it can.
    """
    possible = [one for one in KINDS if _refusal(config, one) is None]
    if kind is None and possible:
        return possible[0]
    kind = kind or "controlled"
    if (reason := _refusal(config, kind)) is None:
        return kind
    can = f"the run can be exported as {' or '.join(possible)}" if possible else "nor can it be exported otherwise"
    raise ConfigError(f"--as {kind}: {reason}; {can}")


def _refusal(config: Config, kind: str) -> str | None:
    """Return why a run cannot be exported as a kind; None if it can."""
    if kind not in parameterisation_of(config).exports:
        return f"parameters={resolved_parameters(config)} has no such form"
    if kind != "controlled" and config.alpha != 1.0:
        return f"alpha={config.alpha:g} runs the base beside the trained model"
    if kind != "merged" and (config.base.run is not None or task_of(config).exact):
        made = "an earlier run's model" if config.base.run is not None else f"made by task.name={config.task.name}"
        return f"the base is {made}, and no folder can name it"
    return None


def check_out(out: Path) -> Path:
    """Return the whole path of the folder to write.

    Raises:
        ConfigError: it exists and is not empty, or the folder around it does not exist.
    """
    out = out.expanduser().resolve()
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; create it first")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: it exists and is not empty; name a new folder")
    return out


@torch.no_grad()
def _fill(folder: Path, run: str, kind: str, dtype: str, name: str, overrides: Sequence[str]) -> float:
    """Write everything into an empty folder; return the largest difference from the run, in nats."""
    method = restore_method(run, overrides=overrides)
    config, base = method.config, method.base
    source, temperature = base.source, base.temperature
    ids_NL, mask_NL = _probe(method)
    of_run_NLV = log_probs(method.controlled(), ids_NL, mask_NL, 1.0)
    if kind == "controlled":
        method.controlled().save_pretrained(folder)
    else:
        _save_weights(folder, method, kind, dtype)
        save_tokenizer(base, folder)
    write_card(folder, find_run(run), config, base, kind, name)
    for file in folder.rglob("*"):  # safetensors writes files that only their owner can read
        if file.is_file():
            shutil.copymode(folder / "README.md", file)
    exact = kind != "merged" or dtype == "float32"
    exact = exact and config.base.dtype == "float32"
    # One copy of the weights at a time: the folder is loaded when the run is gone.
    del method, base
    gc.collect()
    model = load_again(folder, kind, source)
    at = 1.0 if kind == "controlled" else temperature
    difference = float((log_probs(model, ids_NL, mask_NL, at) - of_run_NLV).abs().max())
    if exact and not difference <= LARGEST:
        raise DataError(
            f"the {kind} folder computes another model than the run, log-probabilities differ by {difference:.2g} "
            "nats; it has not been kept"
        )
    return difference


def _save_weights(folder: Path, method: RolloutMethod, kind: str, dtype: str) -> None:
    from safetensors import SafetensorError

    base, scores = method.base, method.scores
    sampling = sampling_settings(base, method.config.rollouts.max_new_tokens)
    try:
        if kind == "adapter":
            source = base.source
            assert source is not None, "bases that were made in memory have been refused"
            _check_no_adapter(source)
            sampling.save_pretrained(folder)
            scores.save_adapter(folder, source.path, source.revision)
            return
        if quantisation := quantised_by(base.model):
            raise ConfigError(
                f"--as merged: {base.name} is quantised ({quantisation}), and adapters cannot be added to rounded "
                "weights without loss; export it as adapter"
            )
        # Sums of a weight and its small update are rounded once, to the type that was asked for.
        plain: Any = scores.float().fold()
        plain.to(getattr(torch, dtype))
        plain.generation_config = sampling
        plain.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(None, " ".join(str(error).split())) from None


def _check_no_adapter(source: Source) -> None:
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(source.path, revision=source.revision) is not None:
        raise ConfigError(
            f"--as adapter: base.name={source.path} is an adapter itself, and peft loads one onto a plain model; "
            "export it as merged"
        )


def load_again(folder: Path, kind: str, source: Source | None) -> Any:
    """Load an exported folder as its user does.

    Args:
        source: where the base of an adapter is.
    """
    if kind == "controlled":
        return ControlledLM.from_pretrained(folder)
    from transformers import AutoModelForCausalLM

    if kind == "merged":
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    from peft import PeftModel

    assert source is not None
    dtype = getattr(torch, source.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        source.path, revision=source.revision, dtype=dtype, trust_remote_code=False
    )
    return PeftModel.from_pretrained(model, folder).eval()


def log_probs(model: Any, ids_NL: Tensor, mask_NL: Tensor, temperature: float) -> Tensor:
    """Return next-token log-probabilities ``[N, L, V]`` of softmax(logits / temperature), 0 on padding, float32."""
    logits_NLV = model(input_ids=ids_NL, attention_mask=mask_NL).logits
    return (logits_NLV.float() / temperature).log_softmax(-1) * mask_NL[..., None]


def _probe(method: RolloutMethod) -> tuple[Tensor, Tensor]:
    """Return texts to compare two models on, ids and mask ``[N, L]``.

    They are the run's own: on random tokens, deep models amplify rounding.
    """
    base, numbers_NT = method.base, uniforms(range(1), TEXTS, TOKENS, 0, "export")
    ids_1S, mask_1S = base.encode_prompts([Prompt("", "")])
    rows = sample(Decoder(method.controlled()), ids_1S, mask_1S, base.eos_ids, numbers_NT).tokens
    length = max(map(len, rows))
    padded = [[*ids_1S[0].tolist(), *row, *[base.pad_id] * (length - len(row))] for row in rows]
    mask = [[1] * (ids_1S.shape[1] + len(row)) + [0] * (length - len(row)) for row in rows]
    return torch.tensor(padded), torch.tensor(mask)


def _unwritable(reason: str) -> ConfigError:
    return ConfigError(f"--out {reason}; make room or name another folder, nothing has been left there")
