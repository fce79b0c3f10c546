"""What is found out before anything is sampled: prompts, templates and tokens that do not fit the base."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from small_run import CHATML, SIX, byte_tokenizer, chat_tokenizer, save_base, save_prompts, small_words

import evaluate
import generate
import train
import workbench.environment
from datamodules.reference_rows import rows_of_references
from dinado.bases.causal import BaseLM
from dinado.bases.frozen_date import freeze_date
from dinado.bases.prompt_checks import contradictions, encoded, encoded_digest, end_of_turn, end_token
from dinado.prompt import Prompt
from dinado.rollouts.beam import beam_search
from engine.restoring import restore_method

STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
DEAF = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
LLAMA3_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|eot_id|>{% endfor %}"


def named(name: str) -> Callable[[Path], object]:
    """Save a chat base with a template."""
    template = {"strict": STRICT, "deaf": DEAF, "broken": "{% for %}"}[name]
    return lambda folder: save_base(folder, chat_tokenizer(template))


def no_default(folder: Path) -> None:
    """A tokenizer with several named templates, none of them the default."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = {"tool_use": CHATML, "rag": CHATML}
    save_base(folder, tokenizer)


def padded(folder: Path) -> None:
    """A padding token that was added to the tokenizer and not to the model."""
    tokenizer = byte_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    save_base(folder, tokenizer, vocab_size=size)


BAD: dict[str, tuple[Callable[[Path], object], str, list[str]]] = {
    "a prompt longer than the context": (
        lambda folder: save_base(folder, max_position_embeddings=12),
        "max_position_embeddings=12",
        [],
    ),
    "a system prompt that the template refuses": (named("strict"), "no system role", ["base.system_prompt=Be brief."]),
    "a system prompt that the template drops": (named("deaf"), "leaves it out", ["base.system_prompt=Be brief."]),
    "a system prompt without a template": (save_base, "without a chat template", ["base.system_prompt=Be brief."]),
    "a template that does not parse": (named("broken"), "chat template fails on prompt", []),
    "no default template": (no_default, "chat template fails on prompt", []),
    "a padding token without an embedding": (padded, "its padding token is 257", []),
    "an end that is no token": (
        lambda folder: save_base(folder, generation={"eos_token_id": [0, 9999]}),
        "end-of-sequence token is 9999",
        [],
    ),
    "a tokenizer of another model": (
        lambda folder: save_base(folder, vocab_size=30),
        "do not belong together",
        [],
    ),
}


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.parametrize("name", BAD)
def test_it_is_one_line_before_the_sampling(name: str, tmp_path: Path, command: Command) -> None:
    make, says, more = BAD[name]
    make(tmp_path / "model")
    for words in ([*small_words(tmp_path, *more), "--dry-run"], small_words(tmp_path, *more)):
        result = command(train, *words)
        assert result.code == 2 and "Traceback" not in result.err, result.err
        line = result.err.splitlines()[-1]
        assert line.startswith("error: ") and says in line, line
    assert not (tmp_path / "cache" / "rollouts").exists()


def test_held_out_prompts_and_references_are_checked_too(tmp_path: Path, command: Command) -> None:
    save_base(tmp_path / "model", max_position_embeddings=40)
    rows: list[Any] = [{"prompt": text, "references": ["short"]} for text in SIX]
    rows[0]["references"].append("x" * 50)
    words = [word for word in small_words(tmp_path) if not word.startswith(("targets.", "objective."))]
    words += ["method=sft", "sft_data=references"]
    save_prompts(tmp_path / "prompts.jsonl", rows)
    assert "a reference of 52" in command(train, *words, "--dry-run").error
    rows[0]["references"], rows[5]["prompt"] = ["x"], "y" * 50
    save_prompts(tmp_path / "prompts.jsonl", rows)
    assert "has 50 tokens" in command(train, *words, "--dry-run").error
    assert "has 50 tokens" in command(evaluate, "base", *words[:-2]).error


def test_generate_says_it_too(tmp_path: Path, command: Command) -> None:
    save_base(tmp_path / "model", max_position_embeddings=40)
    result = command(train, *small_words(tmp_path, "optim.steps=1"), "--json")
    run = result.json["run_dir"]
    assert "max_position_embeddings=40" in command(generate, run, "--prompt", "x" * 50).error
    assert "--max-new-tokens=90" in command(generate, run, "--prompt", "x", "--max-new-tokens", "90").error
    assert command(generate, run, "--prompt", "x" * 30).code == 0


# Ends of responses


def loaded(folder: Path, **settings: Any) -> BaseLM:
    return BaseLM.load(str(folder), **settings)


def test_a_reference_ends_as_a_turn_does(tmp_path: Path) -> None:
    names = {"bos_token": LLAMA3[0], "eos_token": LLAMA3[2], "chat_template": LLAMA3_TEMPLATE}
    save_base(tmp_path, byte_tokenizer(LLAMA3, **names), generation={"eos_token_id": [1, 2]})
    chat, plain = loaded(tmp_path), loaded(tmp_path, chat_template=False)
    assert (end_of_turn(chat), end_token(chat), end_token(plain)) == (2, 2, 2)
    rows = rows_of_references([Prompt("0", "Hi", {"references": ["Ho", "Hu"]})], chat)
    assert [rows.response(row)[0][-1] for row in (0, 1)] == [2, 2]
    assert list(contradictions(chat)) == []
    plain.tokenizer.eos_token = LLAMA3[1]
    assert end_token(plain) == 1


def test_an_end_that_the_template_does_not_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_base(tmp_path, chat_tokenizer(), generation={"eos_token_id": 0})
    base = loaded(tmp_path)
    assert end_of_turn(base) == 2 and end_token(base) == 0, "only what ends a sample can be taught as its end"
    said = list(contradictions(base))
    assert len(said) == 2 and all("<|im_end|>" in line and "<|endoftext|>" in line for line in said)
    save_base(tmp_path / "good", chat_tokenizer(), generation={"eos_token_id": [0, 2]})
    assert list(contradictions(loaded(tmp_path / "good"))) == []


def test_the_contradiction_is_said_in_a_dry_run(tmp_path: Path, command: Command) -> None:
    save_base(tmp_path / "model", chat_tokenizer(), generation={"eos_token_id": 0})
    result = command(train, *small_words(tmp_path), "--dry-run")
    assert result.code == 0 and "chat template ends a response with <|im_end|>" in " ".join(result.out.split())
    logging.getLogger().handlers.clear()


@pytest.mark.parametrize(
    "defaults",
    [{"repetition_penalty": 9.0}, {"no_repeat_ngram_size": 1}, {"min_length": 40}, {"suppress_tokens": [70, 71, 72]}],
)
def test_a_search_ignores_the_bases_habits(tmp_path: Path, defaults: dict[str, Any]) -> None:
    save_base(tmp_path / "plain")
    save_base(tmp_path / "habits", generation=defaults)
    found = []
    for name in ("plain", "habits"):
        base = loaded(tmp_path / name)
        before = base.model.generation_config.to_dict()
        ids_PS, mask_PS = base.encode_prompts([Prompt("0", "Say a.")])
        found.append(beam_search(base, ids_PS, mask_PS, 4, 12).tokens)
        assert base.model.generation_config.to_dict() == before
    assert found[0] == found[1]


# What identifies a store


@pytest.mark.parametrize("format", ["%d %b %Y", "%B %-d, %Y", "%Y-%m-%d", "%A %H:%M", "%d/%m/%y 100%%", "no date"])
def test_a_date_stands_still(tmp_path: Path, format: str) -> None:
    moment = datetime(2024, 3, 5, 17, 45)
    template = "\n {%- set today = strftime_now('" + format + "') %}Today is {{ today }}\n" + CHATML
    tokenizer = chat_tokenizer(template)
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    freeze_date(tokenizer, moment)
    frozen = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert frozen == plain.replace(datetime.now().strftime(format), moment.strftime(format))
    assert tokenizer.chat_template == template


def test_what_the_base_reads_is_part_of_the_digest(tmp_path: Path) -> None:
    prompts = [Prompt(str(i), text) for i, text in enumerate(SIX)]
    save_base(tmp_path, chat_tokenizer(DATED))
    digests = set()
    for day in (1, 2, 2):
        base = loaded(tmp_path)
        freeze_date(base.tokenizer, datetime(2024, 3, day))
        digests.add(encoded_digest(base, prompts))
        assert base.encode_prompts(prompts[:1])[0][0].tolist() == list(encoded(base, prompts[0]))
    assert len(digests) == 2
    assert encoded_digest(base, prompts[1:]) != encoded_digest(base, prompts)


def test_a_tokenizer_that_now_adds_a_token_samples_anew(tmp_path: Path, command: Command) -> None:
    save_base(tmp_path / "model")
    words = small_words(tmp_path, "optim.steps=1")
    assert command(train, *words).code == 0
    stores = set(tmp_path.glob("cache/rollouts/*"))
    file = tmp_path / "model" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    bos = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos["id"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos["id"]: bos},
    }
    file.write_text(json.dumps(tokenizer))
    assert command(train, *words).code == 0
    assert len(set(tmp_path.glob("cache/rollouts/*")) - stores) == len(stores)


class LongAgo(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime(2020, 1, 2, 3, 4, 5)


def test_a_run_keeps_its_date(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    save_base(tmp_path / "model", chat_tokenizer(DATED), generation={"eos_token_id": [2, 0]})
    with monkeypatch.context() as patch:
        patch.setattr(workbench.environment, "datetime", LongAgo)
        result = command(train, *small_words(tmp_path), "--json")
    assert result.code == 0, result.err
    run, stores = result.json["run_dir"], set(tmp_path.glob("cache/rollouts/*"))
    assert command(train, "--resume", run, "optim.steps=3").code == 0
    assert command(evaluate, run).code == 0
    assert set(tmp_path.glob("cache/rollouts/*")) == stores
    base = restore_method(run).base
    assert "02 Jan 2020" in base.decode(list(encoded(base, Prompt("0", "Hi"))))
    assert torch.equal(base.encode_prompts([Prompt("0", "Hi")])[0][0], torch.tensor(encoded(base, Prompt("0", "Hi"))))
