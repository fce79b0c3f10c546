"""``export.py``: what is exported computes what the run computes, in plain transformers and in peft."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import Command
from export_case import DATED, LORA, SYSTEM, TEMPERATURE, chat_run, exact_run, log_probs, restored, some_ids
from helpers import base_lm, random_lora
from safetensors.torch import load_file
from small_run import chat_tokenizer, save_base
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import export
from dinado.bases.causal import BaseLM
from dinado.bases.frozen_date import template_of
from dinado.control.controlled_lm import ControlledLM
from dinado.prompt import Prompt, Turn

CLOSE = 1e-5
"""Rounding of float32, of a log-probability."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's --max-lora-rank."""
VLLM_LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""The modules of a Llama that vLLM adapts, as peft names them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def lora(folder: Path) -> Path:
    return chat_run(folder, *LORA)


@pytest.fixture(scope="module")
def network(folder: Path) -> Path:
    return chat_run(folder, "method=nado", "network.width=16")


@pytest.fixture(scope="module")
def merged(lora: Path, folder: Path) -> Path:
    from engine.exporting import export_run

    export_run(str(lora), folder / "merged", None, None, None)
    return folder / "merged"


@pytest.fixture(scope="module")
def adapter(lora: Path, folder: Path) -> Path:
    from engine.exporting import export_run

    export_run(str(lora), folder / "adapter", "adapter", None, None)
    return folder / "adapter"


def exported(command: Command, run: Path, out: Path, *words: str) -> dict:
    result = command(export, str(run), "--out", str(out), *words, "--json")
    assert result.code == 0, result.err
    assert not list(out.parent.glob(".*")), "the hidden folder has its name"
    return result.json


def test_a_merged_model_is_the_run(merged: Path, lora: Path) -> None:
    base, run = restored(lora)
    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert type(plain).__name__ == "LlamaForCausalLM" and not hasattr(plain, "peft_config")
    ids_NL = some_ids(base)
    torch.testing.assert_close(log_probs(plain, ids_NL, TEMPERATURE), log_probs(run, ids_NL), atol=CLOSE, rtol=CLOSE)
    with run.scores.off():
        of_base_NLV = log_probs(base.model, ids_NL, TEMPERATURE)
    assert (of_base_NLV - log_probs(run, ids_NL)).abs().max() > 0.01, "training has changed the model"


def test_sampling_settings_are_written_out(merged: Path, lora: Path) -> None:
    settings = json.loads((merged / "generation_config.json").read_text())
    settings.pop("transformers_version")
    assert settings == {
        "bos_token_id": 0,
        "do_sample": True,
        "eos_token_id": [2, 0],
        "max_new_tokens": 8,
        "pad_token_id": 0,
        "temperature": TEMPERATURE,
        "top_k": 0,
        "top_p": 1.0,
    }


def test_generate_samples_the_run_s_distribution(merged: Path, lora: Path) -> None:
    """The scores that generate() draws from are log q, temperature included."""
    base, run = restored(lora)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    ask = [{"role": "user", "content": "Say a."}]
    inputs = tokenizer.apply_chat_template(ask, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    torch.manual_seed(0)
    out = plain.generate(
        **inputs, num_return_sequences=16, output_scores=True, return_dict_in_generate=True, renormalize_logits=False
    )
    start = inputs["input_ids"].shape[1]
    texts = {base.decode(row[start:].tolist()) for row in out.sequences}
    assert len(texts) > 8, "it samples"
    log_q_NLV = log_probs(run, out.sequences)
    for step, scores_NV in enumerate(out.scores):
        going = ~torch.isin(out.sequences[:, start : start + step], torch.tensor(base.eos_ids)).any(1)
        found, wanted = scores_NV.log_softmax(-1)[going], log_q_NLV[going, start + step - 1]
        torch.testing.assert_close(found, wanted, atol=CLOSE, rtol=CLOSE)
    assert len(out.scores) <= 8


@pytest.mark.parametrize(
    "prompt", [Prompt("a", "Say a."), Prompt("b", "More", turns=(Turn("user", "Hi"), Turn("assistant", "Ho")))]
)
def test_the_tokenizer_writes_prompts_as_the_run_does(merged: Path, lora: Path, prompt: Prompt) -> None:
    base, _ = restored(lora)
    ids_1S, _ = base.encode_prompts([prompt])
    plain = AutoTokenizer.from_pretrained(merged)
    ids = plain.apply_chat_template(prompt.messages(), add_generation_prompt=True, return_dict=False)
    assert ids == ids_1S[0].tolist()
    text = plain.decode(ids)
    assert SYSTEM in text and "Today is" in text
    # A conversation with a system message of its own keeps that one, and the date stands still on any day.
    own = [{"role": "system", "content": "Mine."}, *prompt.messages()]
    assert SYSTEM not in plain.apply_chat_template(own, tokenize=False)
    assert "strftime_now('" in str(template_of(plain)) and "macro strftime_now" in str(template_of(plain))


def test_a_run_without_template_exports_none(folder: Path, command: Command, tmp_path: Path) -> None:
    run = chat_run(folder, *LORA, "base.chat_template=false", "base.system_prompt=null")
    exported(command, run, tmp_path / "out")
    plain = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert plain.chat_template is None
    base, _ = restored(run)
    assert plain("Say a.")["input_ids"] == base.encode_prompts([Prompt("a", "Say a.")])[0][0].tolist()


@pytest.mark.parametrize("words", [LORA, ["method=dinado_merge", "parameters=full"]])
def test_conv1d_layers_and_full_copies(words: list[str], command: Command, tmp_path: Path) -> None:
    run = exact_run(tmp_path, "optim.lr=0.05", *words)
    exported(command, run, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base, controlled = restored(run)
    ids_NL = some_ids(base)
    found, wanted = log_probs(plain, ids_NL, TEMPERATURE), log_probs(controlled, ids_NL)
    torch.testing.assert_close(found, wanted, atol=CLOSE, rtol=CLOSE)


def test_tied_embeddings_stay_tied(folder: Path, command: Command, tmp_path: Path) -> None:
    save_base(tmp_path / "model", chat_tokenizer(DATED), tie_word_embeddings=True)
    run = chat_run(tmp_path, *LORA)
    exported(command, run, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    base, controlled = restored(run)
    ids_NL = some_ids(base)
    found, wanted = log_probs(plain, ids_NL, TEMPERATURE), log_probs(controlled, ids_NL)
    torch.testing.assert_close(found, wanted, atol=CLOSE, rtol=CLOSE)


def test_a_shorter_type_rounds_and_says_how_much(lora: Path, command: Command, tmp_path: Path) -> None:
    record = exported(command, lora, tmp_path / "out", "--dtype", "bfloat16")
    assert record["largest_difference"] > 1e-4
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plain.dtype == torch.bfloat16


# Adapters


ADAPTER_PROGRAM = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[3])).logits, sys.argv[4])
assert not [name for name in sys.modules if name.split(".")[0] in ("dinado", "engine", "workbench")]
"""


def test_an_adapter_is_the_run_in_a_process_without_our_code(adapter: Path, lora: Path, tmp_path: Path) -> None:
    base, run = restored(lora)
    config = json.loads((adapter / "adapter_config.json").read_text())
    ids_NL = some_ids(base)
    torch.save(ids_NL, tmp_path / "ids.pt")
    files = [config["base_model_name_or_path"], adapter, tmp_path / "ids.pt", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-I", "-c", ADAPTER_PROGRAM, *map(str, files)], check=True, cwd=tmp_path)
    log_q_NLV = (torch.load(tmp_path / "logits.pt") / TEMPERATURE).log_softmax(-1)
    torch.testing.assert_close(log_q_NLV, log_probs(run, ids_NL), atol=CLOSE, rtol=CLOSE)
    settings = GenerationConfig.from_pretrained(adapter)
    assert (settings.temperature, settings.top_k, settings.repetition_penalty) == (TEMPERATURE, 0, None)
    # A base folder that is an adapter is loaded and folded by ours.
    again = BaseLM.load(str(adapter), temperature=TEMPERATURE)
    torch.testing.assert_close(log_probs(again.model, ids_NL, TEMPERATURE), log_probs(run, ids_NL), atol=1e-4, rtol=0)


def test_an_adapter_meets_what_vllm_asks(adapter: Path) -> None:
    """The conditions that vLLM documents and checks when it loads an adapter of peft."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    assert config["peft_type"] == "LORA" and 1 <= config["r"] <= max(VLLM_RANKS)
    assert config["bias"] == "none" and not config["modules_to_save"] and not config["use_dora"]
    assert not config["use_rslora"] and not config["rank_pattern"] and not config["alpha_pattern"]
    assert set(config["target_modules"]) == VLLM_LLAMA
    names = {re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key) for key in weights}
    assert None not in names and {match[1].rpartition(".")[2] for match in names if match} == VLLM_LLAMA
    modules = {match[1] for match in names if match}
    assert len(weights) == 2 * len(modules)
    for module in modules:
        a_rI, b_Or = (weights[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
        assert a_rI.shape[0] == b_Or.shape[1] == config["r"]


def test_modules_that_share_a_name_with_others_are_named_in_full(tmp_path: Path) -> None:
    one = "model.layers.0.self_attn.q_proj"
    scores = random_lora(base_lm("llama"), targets=[one])
    scores.save_adapter(tmp_path, "base", None)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == [one]


# Controlled models


@pytest.mark.parametrize("kind", ["network", "lora"])
def test_a_controlled_model_is_the_run(
    kind: str, command: Command, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(kind)
    words = ["--as", "controlled"] if kind == "lora" else []
    record = exported(command, run, tmp_path / "out", *words)
    assert record["kind"] == "controlled", "the default of an oracle network"
    again = ControlledLM.from_pretrained(tmp_path / "out")
    base, controlled = restored(run)
    ids_NL = some_ids(base)
    torch.testing.assert_close(log_probs(again, ids_NL), log_probs(controlled, ids_NL), atol=CLOSE, rtol=CLOSE)
