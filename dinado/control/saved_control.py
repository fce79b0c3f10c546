"""The folder of a saved controlled model: trained weights as safetensors, and a configuration that names the base.

``config.json`` is written last and names the weights by their SHA-256, so that at every moment a folder is complete or
still the earlier save. Loading imports nothing that a folder names, except files of this package.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from dinado.bases.causal import BaseLM
from dinado.bases.frozen_date import freeze_date, frozen_date
from dinado.durable import file_digest, write_atomic
from dinado.errors import CheckpointError, UserError
from dinado.imports import imported
from dinado.parameters.parameterisation import Parameterisation

CONFIG, FORMAT = "config.json", 1
MODEL_TYPE = "dinado_controlled"
OURS = re.compile(r"config\.json|(config\.json|model)\.tmp-\d+|model-[0-9a-f]{12}\.safetensors|README\.md|\..*")
"""Names that a folder may hold before it is saved to; a model card and hidden files stay as they are."""
OWN_KINDS = "dinado.parameters."


@dataclass(frozen=True)
class Saved:
    """A configuration that was read, and where it lies."""

    folder: Path
    config: dict[str, Any]

    def entry(self, name: str, kind: type | tuple[type, ...], of: Mapping[str, Any] | None = None) -> Any:
        """Return an entry of the configuration, or of a part of it.

        Raises:
            CheckpointError: it is missing or of another type.
        """
        value = (self.config if of is None else of).get(name)
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{self.folder / CONFIG} is damaged: {name!r} is missing or of another type; save the model again"
            )
        return value


def save_scores(scores: Parameterisation, folder: Path, about: Mapping[str, Any]) -> None:
    """Write trained weights and their configuration.

    Args:
        about: further entries of the configuration.

    Raises:
        CheckpointError: see :meth:`dinado.control.controlled_lm.ControlledLM.save_pretrained`.
    """
    how = scores.injection
    if how is None:
        raise CheckpointError(f"{type(scores).__name__} was not built by inject(), so its settings are not known")
    parameters = dict(scores.named_parameters())
    if missing := [name for name in how.names if name not in parameters]:
        raise CheckpointError(f"the weights have been folded ({missing[0]} is gone); save the plain model instead")
    try:
        if foreign := sorted(path.name for path in folder.iterdir() if not OURS.fullmatch(path.name)):
            raise CheckpointError(f"{folder} holds other files ({foreign[0]}); give a new folder")
        if (folder / CONFIG).exists():
            read_saved(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _not_written(f"{folder} is no folder: {error.strerror}") from None
    kind = type(scores)
    config = {"model_type": MODEL_TYPE, "format": FORMAT} | dict(about)
    config["base"] = _description(scores.base)
    config["parameterisation"] = {"kind": f"{kind.__module__}:{kind.__qualname__}", "settings": how.settings}
    try:
        json.dumps(config)
    except TypeError as error:
        raise CheckpointError(f"{kind.__name__}: its settings cannot be written as JSON ({error})") from None
    config["weights_sha256"] = digest = _write_weights(
        folder, {name: parameters[name].detach().cpu().contiguous() for name in how.names}
    )
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode(), _not_written)
    with suppress(OSError):  # the save is complete; what is left is tidying
        shutil.copymode(folder / CONFIG, folder / _name(digest))
        for old in folder.glob("model-*.safetensors"):
            if old.name != _name(digest):
                old.unlink()


def read_saved(folder: Path) -> Saved:
    """Read the configuration of a saved controlled model.

    Raises:
        CheckpointError: there is none, or it is of another model or version.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder} is no folder of a saved controlled model ({CONFIG}: {error.strerror}); give one that "
            "save_pretrained wrote"
        ) from None
    except ValueError:
        raise CheckpointError(f"{path} is damaged: it is not JSON; save the model again") from None
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"{path} is of another model; give a folder that ControlledLM.save_pretrained wrote")
    if config.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {config.get('format')}, and this version reads format {FORMAT}")
    return Saved(folder, config)


def restore_scores(saved: Saved, base: BaseLM | str | Path | None) -> Parameterisation:
    """Find the base, check that it is the same, inject the weights' places and load their values.

    Raises:
        CheckpointError: see :meth:`dinado.control.controlled_lm.ControlledLM.from_pretrained`.
    """
    about = saved.entry("parameterisation", dict)
    kind = _kind(saved.entry("kind", str, about), saved.folder)
    settings = saved.entry("settings", dict, about)
    weights = saved.folder / _name(saved.entry("weights_sha256", str))
    tensors = _read_weights(weights, saved.config["weights_sha256"])
    lm = _base(saved, base)
    try:
        scores = kind.inject(lm, **settings)
    except TypeError as error:
        raise CheckpointError(
            f"{saved.folder / CONFIG}: {kind.__name__} has other settings in this version ({error})"
        ) from None
    for child in scores.children():
        if child is not lm:
            child.to(lm.device)
    _load(scores, tensors, weights)
    return scores


def _description(base: BaseLM) -> dict[str, Any]:
    """Describe a base so that it can be found, and recognised, again."""
    source = base.source
    return {
        "name": base.name,
        "path": None if source is None else source.path,
        "revision": None if source is None else source.revision,
        "dtype": str(base.model.dtype).removeprefix("torch.") if source is None else source.dtype,
        "fingerprint": base.fingerprint,
        "temperature": base.temperature,
        "chat_template": base.chat_template,
        "system_prompt": base.system_prompt,
        "date": frozen_date(base.tokenizer),
    }


def _base(saved: Saved, given: BaseLM | str | Path | None) -> BaseLM:
    """Return the base, loaded if need be, once its fingerprint has been compared."""
    about = saved.entry("base", dict)
    name, wanted = saved.entry("name", str, about), saved.entry("fingerprint", str, about)
    if isinstance(given, BaseLM):
        base = given
        if base.has_adapters:
            raise CheckpointError("base= has adapters in it already, which would be replaced; give a base without any")
    else:
        path, revision = (about.get("path"), about.get("revision")) if given is None else (str(given), None)
        if path is None:
            raise CheckpointError(f"{saved.folder}: its base {name} was built in memory; give it as base=")
        try:
            base = BaseLM.load(
                path,
                revision=revision,
                dtype=saved.entry("dtype", str, about),
                name=name,
                temperature=saved.entry("temperature", (int, float), about),
                chat_template=saved.entry("chat_template", bool, about),
                system_prompt=about.get("system_prompt"),
            )
        except UserError as error:
            raise CheckpointError(f"{saved.folder}: its base is not to be had ({error}); give it as base=") from None
        if about.get("date") is not None:
            freeze_date(base.tokenizer, datetime.fromisoformat(about["date"]))
    if base.fingerprint != wanted:
        raise CheckpointError(
            f"{saved.folder} was trained on {name} with fingerprint {wanted}, and this base has {base.fingerprint}: "
            "weights, tokenizer, dtype, temperature, chat template or system prompt differ; give the same as base="
        )
    return base


def _kind(path: str, folder: Path) -> type[Parameterisation]:
    """Return the class of a parameterisation: one of this package, or one that the caller has imported."""
    known = [Parameterisation]
    for kind in known:
        known += kind.__subclasses__()
        if path == f"{kind.__module__}:{kind.__qualname__}":
            return kind
    module, _, name = path.partition(":")
    # The folder decides what is imported, so nothing outside this package is.
    if module.startswith(OWN_KINDS) and name.isidentifier():
        with suppress(UserError):
            kind = imported(path)
            if isinstance(kind, type) and issubclass(kind, Parameterisation):
                return kind
    raise CheckpointError(f"{folder / CONFIG}: there is no parameterisation {path}; import the file that defines it")


def _name(digest: str) -> str:
    return f"model-{digest[:12]}.safetensors"


def _write_weights(folder: Path, tensors: dict[str, Tensor]) -> str:
    """Write weights under the name of their digest, and return it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = folder / f"model.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"format": "pt"})
        with open(temporary, "rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        os.replace(temporary, folder / _name(digest))
    except OSError as error:
        raise _not_written(f"{folder} cannot be written: {error.strerror}") from None
    except SafetensorError as error:
        raise _not_written(f"{folder} cannot be written: {error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return digest


def _read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file_digest(path) != digest:
            raise CheckpointError(f"{path} is damaged: it is not the file that was saved; save the model again")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path} cannot be read: {reason}; save the model again") from None


def _load(scores: Parameterisation, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put values into the trained weights, every one of the right name and shape."""
    trained = scores.trained()
    if other := sorted(set(trained) ^ set(tensors)):
        fault = "lacks" if other[0] in trained else "has in excess"
        raise CheckpointError(f"{path} {fault} {other[0]}; it is of another parameterisation")
    for name, parameter in trained.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, and {tuple(parameter.shape)} is needed"
            )
    for name, parameter in trained.items():
        parameter.data = tensors[name].to(parameter.device)


def _not_written(reason: str) -> CheckpointError:
    return CheckpointError(f"{reason}; give another folder")
