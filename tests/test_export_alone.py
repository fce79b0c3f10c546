"""An exported folder in a new environment that has torch, transformers and safetensors, and nothing of this project.

The packages come from pip's index, or from the folder of wheels that ``DINADO_WHEELS`` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from export_case import LORA, chat_run, log_probs, restored, some_ids

from dinado.bases.decoder import Decoder
from dinado.prompt import Prompt
from dinado.rollouts.sampler import sample, uniforms
from engine.exporting import export_run

PACKAGES = ("torch", "transformers", "safetensors")
PER_PROMPT, LENGTH = 16, 8
PROMPTS = [Prompt(str(number), text) for number, text in enumerate(("Say a.", "Say b.", "Write a long word."))]
PROGRAM = """
import importlib.util, json, sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

for name in ("dinado", "engine", "peft", "lightning"):
    assert importlib.util.find_spec(name) is None, name
folder, given, answer = map(Path, sys.argv[1:])
given = json.loads(given.read_text())
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)


def drawn_with(numbers_KT):
    steps = iter(torch.tensor(numbers_KT, dtype=torch.float64).T)

    def multinomial(probs, num_samples):
        assert num_samples == 1
        cdf = probs.double().cumsum(-1)
        return torch.searchsorted(cdf, next(steps)[:, None] * cdf[:, -1:], right=True)

    return multinomial


rows = []
for text, numbers_KT in zip(given["prompts"], given["uniforms"]):
    torch.multinomial = drawn_with(numbers_KT)  # generate() as it is, but for where its random numbers come from
    ask = [{"role": "user", "content": text}]
    inputs = tokenizer.apply_chat_template(ask, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    out = model.generate(**inputs, num_return_sequences=len(numbers_KT))
    rows += out[:, inputs["input_ids"].shape[1] :].tolist()
with torch.no_grad():
    logits = model(torch.tensor(given["ids"])).logits
answer.write_text(json.dumps({"rows": rows, "logits": logits.tolist()}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder / "env", with_pip=True)
    interpreter = folder / "env" / "bin" / "python"
    wheels = os.environ.get("DINADO_WHEELS")
    source = ["--no-index", "--find-links", wheels] if wheels else []
    wanted = [f"{name}=={metadata.version(name)}" for name in PACKAGES]
    command = [
        str(interpreter),
        "-m",
        "pip",
        "install",
        "--quiet",
        *source,
        "-c",
        str(ROOT / "constraints.txt"),
        *wanted,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        pytest.skip(f"pip has no {', '.join(wanted)}; set DINADO_WHEELS to a folder of wheels ({lines[-1]})")
    return interpreter


@pytest.mark.slow
def test_generate_writes_the_run_s_texts_where_nothing_of_ours_is(python: Path, tmp_path: Path) -> None:
    run = chat_run(tmp_path, *LORA)
    export_run(str(run), tmp_path / "out", None, None, None)
    base, controlled = restored(run)
    ids_PS, mask_PS = base.encode_prompts(PROMPTS)
    numbers_NT = uniforms(range(len(PROMPTS)), PER_PROMPT, LENGTH, "alone")
    wanted = sample(Decoder(controlled), ids_PS, mask_PS, base.eos_ids, numbers_NT).tokens
    ids_NL = some_ids(base)
    given = {
        "prompts": [prompt.text for prompt in PROMPTS],
        "uniforms": numbers_NT.view(len(PROMPTS), PER_PROMPT, LENGTH).tolist(),
        "ids": ids_NL.tolist(),
    }
    (tmp_path / "given.json").write_text(json.dumps(given))
    words = [str(python), "-I", "-c", PROGRAM, *(str(tmp_path / name) for name in ("out", "given.json", "answer.json"))]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    # After its end, a row is padded up to the longest.
    assert [row[: len(tokens)] for row, tokens in zip(answer["rows"], wanted, strict=True)] == wanted
    for row, tokens in zip(answer["rows"], wanted, strict=True):
        assert set(row[len(tokens) :]) <= {base.pad_id}
    assert len({tuple(tokens) for tokens in wanted}) > 0.9 * len(wanted), "they are samples"
    log_q_NLV = (torch.tensor(answer["logits"]) / base.temperature).log_softmax(-1)
    torch.testing.assert_close(log_q_NLV, log_probs(controlled, ids_NL), atol=1e-5, rtol=1e-5)
