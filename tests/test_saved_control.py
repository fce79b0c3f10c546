"""A controlled model that was saved and loaded again is the same model, and a folder that is not one is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import base_lm, random_full, random_lora, random_network, tiny_llama
from safetensors.torch import load_file, save_file

from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_word_tokenizer
from dinado.control import saved_control
from dinado.control.controlled_lm import ControlledLM
from dinado.errors import CheckpointError
from dinado.parameters.network import Network
from dinado.parameters.parameterisation import Parameterisation

IDS = torch.tensor([[3, 1, 2, 5, 5, 4]])
KINDS: dict[str, Callable[[BaseLM], Parameterisation]] = {
    "network": random_network,
    "tied, two taps": lambda base: random_network(base, "identity", head="tied", taps=[0.5, 1.0]),
    "pointer": lambda base: random_network(base, "identity", head="tied", pointer=True),
    "lora": random_lora,
    "lora, some": lambda base: random_lora(base, targets=["q_proj", "c_attn"], r=2),
    "full": random_full,
}
CASES = [(on, kind) for on in ("gpt2", "llama") for kind in KINDS]
CASES += [("markov", kind) for kind in KINDS if "lora" not in kind]


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base on disk, as from a hub."""
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(8).save_pretrained(folder)
    build_word_tokenizer(8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(hub_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved network on that base."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    base = BaseLM.load(str(hub_folder), temperature=0.8, name="small")
    ControlledLM(random_network(base), 0.7).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved folder that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def edit(folder: Path, **entries: Any) -> None:
    """Change entries of the configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(folder: Path, says: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        ControlledLM.from_pretrained(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("on", "kind"), CASES)
@torch.no_grad()
def test_every_kind_round_trips_bit_for_bit(on: str, kind: str, tmp_path: Path) -> None:
    model = ControlledLM(KINDS[kind](base_lm(on, temperature=0.9)), 0.7).eval()
    model.save_pretrained(tmp_path / "model")
    again = ControlledLM.from_pretrained(tmp_path / "model", base=base_lm(on, temperature=0.9))
    assert type(again.scores) is type(model.scores) and again.alpha == 0.7 and not again.training
    for alpha in (0.0, 0.7, 1.0):
        assert torch.equal(again(IDS, alpha=alpha).logits, model(IDS, alpha=alpha).logits)
    assert (again(IDS, alpha=1.0).logits - again(IDS, alpha=0.0).logits).abs().max() > 0.1
    assert list(again.scores.trained()) == list(model.scores.trained())
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}
    assert set(load_file(weights_of(tmp_path / "model"))) == set(model.scores.trained()), "only what was trained"


def test_the_base_is_loaded_from_where_it_was(saved: Path, hub_folder: Path) -> None:
    about = json.loads((saved / "config.json").read_text())
    assert about["base"]["path"] == str(hub_folder) and about["alpha"] == 0.7
    assert about["base"] | {"temperature": 0.8, "dtype": "float32", "name": "small"} == about["base"]
    assert about["parameterisation"]["kind"] == "dinado.parameters.network:Network"
    assert about["parameterisation"]["settings"]["link"] == "logsigmoid"
    models = [ControlledLM.from_pretrained(saved), ControlledLM.from_pretrained(saved, base=hub_folder)]
    with torch.no_grad():
        first, second = (model(IDS).logits for model in models)
    assert torch.equal(first, second) and models[0].base.name == "small"


def test_weights_frozen_for_decoding_are_saved(tmp_path: Path) -> None:
    model = ControlledLM(random_lora(base_lm("gpt2"))).requires_grad_(False)
    model.save_pretrained(tmp_path)
    again = ControlledLM.from_pretrained(tmp_path, base=base_lm("gpt2"))
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_generation_settings_are_saved(tmp_path: Path) -> None:
    model = ControlledLM(random_network(base_lm("gpt2")))
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    again = ControlledLM.from_pretrained(tmp_path, base=base_lm("gpt2"))
    assert again.generation_config.to_diff_dict() == model.generation_config.to_diff_dict()
    assert again.generate(IDS, do_sample=False, min_new_tokens=3).shape[1] == IDS.shape[1] + 3


def test_a_frozen_date_is_the_same_after_loading(hub_folder: Path, tmp_path: Path) -> None:
    from datetime import datetime

    from dinado.bases.frozen_date import freeze_date
    from dinado.prompt import Prompt

    folder = Path(shutil.copytree(hub_folder, tmp_path / "base"))
    tokenizer = build_word_tokenizer(8)
    tokenizer.chat_template = "{{ strftime_now('%d') | int }} {{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    base = BaseLM.load(str(folder))
    freeze_date(base.tokenizer, datetime(2020, 1, 5))
    ControlledLM(random_network(base)).save_pretrained(tmp_path / "model")
    again = ControlledLM.from_pretrained(tmp_path / "model")
    assert again.base.encode_prompts([Prompt("a", "3 1")])[0].tolist() == [[5, 3, 1]]


# Saving


def test_an_earlier_save_is_replaced(copied: Path, hub_folder: Path) -> None:
    before = weights_of(copied)
    (copied / "README.md").write_text("a model card")
    model = ControlledLM(random_lora(BaseLM.load(str(hub_folder))))
    model.save_pretrained(copied)
    assert weights_of(copied) != before and (copied / "README.md").exists()
    with torch.no_grad():
        assert torch.equal(ControlledLM.from_pretrained(copied)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "config.json"])
def test_other_content_is_not_touched(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"other files|another model"):
        ControlledLM(random_network(base_lm("markov"))).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="no folder"):
        ControlledLM(random_network(base_lm("markov"))).save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("at", ["save_file", "replace", "write_atomic"])
def test_an_interrupted_save_leaves_the_earlier_one(
    at: str, copied: Path, hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    place = {"save_file": "safetensors.torch.save_file", "replace": "os.replace"}
    with torch.no_grad():
        before = ControlledLM.from_pretrained(copied)(IDS).logits
    other = ControlledLM(random_lora(BaseLM.load(str(hub_folder))))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place.get(at, f"dinado.control.saved_control.{at}"), stop)
        other.save_pretrained(copied)
    assert not list(copied.glob("*tmp*"))
    with torch.no_grad():
        assert torch.equal(ControlledLM.from_pretrained(copied)(IDS).logits, before)
    other.save_pretrained(copied)
    assert len(list(copied.iterdir())) == 2, "what the interrupted save left is gone"


def test_what_cannot_be_saved() -> None:
    base = base_lm("gpt2")
    scores = random_network(base)
    by_hand = Network(base, scores.network, scores.taps, scores.link)
    with pytest.raises(CheckpointError, match="not built by inject"):
        ControlledLM(by_hand).save_pretrained("nowhere")
    folded = random_lora(base_lm("gpt2"))
    folded.fold()
    with pytest.raises(CheckpointError, match="have been folded"):
        ControlledLM(folded).save_pretrained("nowhere")
    assert not Path("nowhere").exists()


# Loading


def test_another_base_is_refused(saved: Path, hub_folder: Path) -> None:
    refused(saved, "fingerprint", base=base_lm("gpt2"))
    refused(saved, "fingerprint", base=BaseLM.load(str(hub_folder), temperature=0.9))
    refused(saved, "not to be had", base="no/such-folder")
    adapted = BaseLM.load(str(hub_folder), temperature=0.8)
    random_lora(adapted)
    refused(saved, "adapters in it already", base=adapted)


def test_a_base_in_memory_has_to_be_given(tmp_path: Path) -> None:
    ControlledLM(random_network(base_lm("markov"))).save_pretrained(tmp_path)
    refused(tmp_path, "built in memory; give it as base=")


def test_folders_that_are_not_ours(copied: Path, hub_folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "is no folder of a saved controlled model")
    refused(hub_folder, "another model")
    edit(copied, format=99)
    refused(copied, "format 99")
    (copied / "config.json").write_text("{")
    refused(copied, "not JSON")


@pytest.mark.parametrize("entry", ["base", "parameterisation", "alpha", "generation", "weights_sha256"])
def test_a_configuration_without_an_entry(entry: str, copied: Path) -> None:
    edit(copied, **{entry: None})
    refused(copied, f"{entry!r} is missing")


def test_damaged_weights(copied: Path) -> None:
    path = weights_of(copied)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(copied, "damaged")
    path.write_bytes(content[:100])
    refused(copied, "damaged")
    path.unlink()
    refused(copied, "cannot be read: No such file")


def put_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Replace the weights by others that are whole, name and digest included."""
    tensors = load_file(weights_of(folder))
    change(tensors)
    weights_of(folder).unlink()
    save_file(tensors, folder / "new")
    digest = saved_control.file_digest(folder / "new")
    (folder / "new").rename(folder / f"model-{digest[:12]}.safetensors")
    edit(folder, weights_sha256=digest)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop("network.out.weight"), "lacks network.out.weight"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "has in excess more"),
        (lambda tensors: tensors.update({"network.out.weight": torch.zeros(8, 3)}), "has shape"),
    ],
)
def test_weights_of_another_shape(change: Callable[..., None], says: str, copied: Path) -> None:
    put_weights(copied, change)
    refused(copied, says)


@pytest.mark.parametrize("kind", ["os:system", "dinado.parameters.nothing:X", "dinado.errors:UserError", "lora", ""])
def test_a_folder_cannot_choose_what_is_imported(kind: str, copied: Path) -> None:
    edit(copied, parameterisation={"kind": kind, "settings": {}})
    refused(copied, re.escape(f"there is no parameterisation {kind}"))


def test_settings_of_another_version(copied: Path) -> None:
    about = json.loads((copied / "config.json").read_text())["parameterisation"]
    edit(copied, parameterisation=about | {"settings": about["settings"] | {"depth": 3}})
    refused(copied, "other settings in this version")
