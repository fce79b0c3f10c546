"""Bases from folders: whole, with adapters folded, without running the folder's code, or refused in one line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import base_lm, batch_of, random_lora, tiny_llama
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel

from dinado.bases.causal import BaseLM
from dinado.bases.identity import model_digest
from dinado.bases.markov import build_word_tokenizer
from dinado.errors import DataError, UserError
from dinado.parameters.full import Full

WHOLE = "give the folder of a whole causal language model"


def save(model: Any, folder: Path) -> Path:
    """Save a model, and a tokenizer of its vocabulary."""
    model.save_pretrained(folder)
    build_word_tokenizer(8).save_pretrained(folder)
    return folder


def change_config(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        BaseLM.load(str(folder))
    assert "\n" not in str(caught.value) and f"base.name={folder}" in str(caught.value)
    return str(caught.value)


def moved(model: Any) -> Any:
    """Move the weights of adapters off their start."""
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=stream))
    return model.eval()


@pytest.mark.parametrize("stdin", ["y\ny\ny\n", ""])
def test_code_in_a_folder_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdin: str) -> None:
    folder, mark = save(tiny_llama(8), tmp_path / "model"), tmp_path / "mark"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        kept = path.read_text()
        classes = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": ["own.T", None]}
        path.write_text(json.dumps(json.loads(kept) | {"auto_map": classes, "model_type": "own"}))
        if name == "config.json":
            assert "cannot be loaded" in refusal(folder)
        else:
            BaseLM.load(str(folder))
        path.write_text(kept)
    assert asked == [] and not mark.exists()


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    config = LlamaConfig(**tiny_llama(8).config.to_dict())
    headless = save(LlamaModel(config), tmp_path / "headless")
    change_config(headless, architectures=["LlamaForCausalLM"])
    assert refusal(headless).endswith(f"weights are missing (lm_head.weight) and would be random; {WHOLE}")
    reward = save(LlamaForSequenceClassification(config), tmp_path / "reward")
    assert "weights are missing (lm_head.weight)" in refusal(reward)
    taller = save(tiny_llama(8), tmp_path / "taller")
    change_config(taller, num_hidden_layers=3)
    assert "model.layers.2" in refusal(taller) and "and 6 more" in refusal(taller)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = save(tiny_llama(8), tmp_path)
    change_config(folder, intermediate_size=40)
    assert "have another shape than the config says (model.layers.0.mlp.down_proj.weight" in refusal(folder)


def test_weights_that_are_not_used_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tiny_llama(8), tmp_path)
    change_config(folder, num_hidden_layers=1)
    assert BaseLM.load(str(folder)).num_layers == 1
    assert "does not use: model.layers.1" in caplog.text


ADAPTERS = {
    "lora": LoraConfig(r=2, target_modules=["q_proj", "down_proj"]),
    "output": LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "saved": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_part_of_the_base(tmp_path: Path, kind: str, embedded: bool) -> None:
    base, folder = save(tiny_llama(8), tmp_path / "base"), tmp_path / "adapter"
    adapted = moved(get_peft_model(tiny_llama(8), ADAPTERS[kind]))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    save(tiny_llama(8), folder) if embedded else build_word_tokenizer(8).save_pretrained(folder)
    loaded, ids = BaseLM.load(str(folder)), torch.arange(8)[None]
    with torch.no_grad():
        wanted, found, plain = (m(ids).logits for m in (adapted, loaded.model, tiny_llama(8)))
    assert (wanted - plain).abs().max() > 0.05
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert {name for name, _ in loaded.model.named_parameters()} == {n for n, _ in tiny_llama(8).named_parameters()}
    batch = batch_of(loaded)
    scores = random_lora(loaded)
    with scores.off():
        torch.testing.assert_close(loaded.log_probs(batch), batch.log_p_BT, rtol=0, atol=1e-4)


def test_adapters_that_cannot_be_folded_are_refused(tmp_path: Path) -> None:
    prompt = get_peft_model(tiny_llama(8), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    dora = moved(get_peft_model(tiny_llama(8), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)))
    base = save(tiny_llama(8), tmp_path / "base")
    for name, adapted in {"prompt": prompt, "dora": dora}.items():  # transformers reads no scales of DoRA
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(tmp_path / name)
        build_word_tokenizer(8).save_pretrained(tmp_path / name)
        refusal(tmp_path / name)


def test_an_adapter_on_a_tied_output_unties_it(tmp_path: Path) -> None:
    base, folder = save(tiny_llama(8, tie_word_embeddings=True), tmp_path / "base"), tmp_path / "adapter"
    adapted = moved(get_peft_model(tiny_llama(8, tie_word_embeddings=True), ADAPTERS["output"]))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    build_word_tokenizer(8).save_pretrained(folder)
    loaded, ids = BaseLM.load(str(folder)), torch.arange(8)[None]
    again = BaseLM.load(str(save(loaded.model, tmp_path / "again")))
    with torch.no_grad():
        wanted = adapted(ids).logits
        for found in (loaded, again):
            torch.testing.assert_close(found.model(ids).logits, wanted, rtol=0, atol=1e-4)


def test_the_base_of_an_adapter_is_whole(tmp_path: Path) -> None:
    base, folder = save(tiny_llama(8), tmp_path / "base"), tmp_path / "adapter"
    adapted = get_peft_model(tiny_llama(8), ADAPTERS["lora"])
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    build_word_tokenizer(8).save_pretrained(folder)
    change_config(base, num_hidden_layers=3)
    with pytest.raises(DataError, match=f"base.name={base}: weights are missing"):
        BaseLM.load(str(folder))
    save(tiny_llama(8), folder)
    change_config(folder, num_hidden_layers=3)
    assert "weights are missing (model.layers.2" in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, "gptq"),
        ({"quant_method": "awq", "bits": 4, "group_size": 16}, "awq|gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_a_missing_back_end_of_a_quantised_folder_is_named(tmp_path: Path, settings: dict, package: str) -> None:
    folder = save(tiny_llama(8), tmp_path)
    change_config(folder, quantization_config=settings)
    with pytest.raises(DataError, match=f"(?i)cannot be loaded.*({package})") as caught:
        BaseLM.load(str(folder))
    assert "\n" not in str(caught.value)


class Packed(torch.Tensor):
    """Quantised weights as some back ends have them: a class of their own that can be dequantised, and little else."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.reshape, torch.Tensor.view, torch.Tensor.float):
            raise NotImplementedError(function)
        return super().__torch_function__(function, types, args, kwargs or {})

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_packed_weights_are_told_apart_by_their_numbers() -> None:
    digests = []
    for seed in (0, 0, 1):
        model = tiny_llama(8, seed)
        layer = model.model.layers[0].mlp.up_proj
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed), requires_grad=False)
        digests.append(model_digest(model, build_word_tokenizer(8)))
    assert digests[0] == digests[1] != digests[2]


def test_a_quantised_base_is_not_trained_whole() -> None:
    base = base_lm("llama")
    base.model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(UserError, match=r"quantised \(bitsandbytes\).*take parameters=lora"):
        Full.inject(base, link="identity", seed=0)


def test_a_fold_of_our_own_adapters_leaves_a_plain_model() -> None:
    scores = random_lora(base_lm("llama"))
    model = scores.fold()
    assert not hasattr(model, "peft_config") and not any("lora" in name for name, _ in model.named_modules())
