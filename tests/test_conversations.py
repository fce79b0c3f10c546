"""Conversations as prompts, and rows that bring a completion and its label."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from small_run import SIX, chat_tokenizer, save_base, save_prompts, small_words

import generate
import train
from datamodules.reference_rows import rows_of_references
from datamodules.tasks import Task, build_task
from dinado.bases.causal import BaseLM
from dinado.bases.prompt_checks import encoded
from dinado.errors import DataError
from dinado.prompt import Prompt, Turn
from workbench.settings.config import Config

ASK = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Ho"}
SYSTEM = {"role": "system", "content": "Be kind."}
AGAIN = {"role": "user", "content": "More"}


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def built(folder: Path, rows: list[dict[str, Any]], method: str = "sft", **task: Any) -> Task:
    """The task of a file that ends with a plain held-out prompt."""
    config = Config()
    config.method, config.sft_data = method, "references"  # type: ignore[assignment]
    config.task.name, config.task.path = "jsonl", str(save_prompts(folder / "p.jsonl", rows))  # type: ignore[assignment]
    config.task.val_path = str(save_prompts(folder / "v.jsonl", ["Held out."]))
    config.oracle.name, config.oracle.pattern = "regex", "o"  # type: ignore[assignment]
    config.data.train_prompts = 0
    for key, value in task.items():
        setattr(config.task, key, value)
    return build_task(config)


def by_text(task: Task) -> dict[str, Prompt]:
    return {prompt.text: prompt for prompt in task.train_prompts}


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_conversation_is_what_the_template_makes_of_it(tmp_path: Path, field: str) -> None:
    save_base(tmp_path / "model", chat_tokenizer())
    base = BaseLM.load(str(tmp_path / "model"))
    talk = [SYSTEM, ASK, ANSWER, AGAIN]
    (prompt,) = built(tmp_path, [{field: talk, "note": 1}], method="nado").train_prompts
    assert (prompt.text, prompt.data) == ("More", {"note": 1, "references": []})
    assert prompt.turns == (Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Ho"))
    said = base.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert bytes(encoded(base, prompt).tolist()) != b"" and base.tokenizer.decode(encoded(base, prompt)) == said


def test_a_lone_question_is_a_plain_prompt(tmp_path: Path) -> None:
    task = built(tmp_path, [{"messages": [ASK]}, {"prompt": "Ho"}], method="nado")
    assert by_text(task)["Hi"].turns == () == by_text(task)["Ho"].turns


def test_completions_are_gathered_by_prompt_and_label(tmp_path: Path) -> None:
    rows = [
        {"prompt": "A", "completion": "good", "label": True},
        {"prompt": "A", "completion": "bad", "label": False},
        {"prompt": "B", "completion": "only"},
        {"prompt": "A", "completion": [{"role": "assistant", "content": "fine"}], "label": 1},
        {"prompt": "A", "completion": "of another topic", "label": True, "topic": "t"},
        {"prompt": "C", "completion": "never", "label": False},
        {"messages": [SYSTEM, ASK, ANSWER]},
        {"messages": [SYSTEM, ASK, AGAIN | {"role": "assistant"}], "label": False},
    ]
    task = built(tmp_path, rows)
    found = [(p.transcript, p.references, p.rejected, p.data.get("topic")) for p in task.train_prompts]
    assert sorted(found, key=repr) == [
        ("A", ["good", "fine"], ["bad"], None),
        ("A", ["of another topic"], [], "t"),
        ("B", ["only"], [], None),
        ("C", [], ["never"], None),
        ("system: Be kind.\nuser: Hi", ["Ho"], ["More"], None),
    ]
    save_base(tmp_path / "model", chat_tokenizer())
    base = BaseLM.load(str(tmp_path / "model"))
    made = rows_of_references(task.train_prompts, base)
    texts = [base.decode(made.response(row)[0]) for row in range(len(made))]
    assert sorted(texts) == ["Ho", "fine", "good", "of another topic", "only"]
    with pytest.raises(DataError, match="every completion is labelled false"):
        rows_of_references([prompt for prompt in task.train_prompts if prompt.text == "C"], base)


def test_a_method_that_weighs_rollouts_refuses_completions(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "A"}, {"prompt": "B", "completion": "x", "label": True}]
    with pytest.raises(
        DataError, match=r"p\.jsonl line 2 has a completion.*sft_data=references.*completion_field=null"
    ):
        built(tmp_path, rows, method="dinado_merge")
    task = built(tmp_path, rows, method="dinado_merge", completion_field=None)
    assert by_text(task)["B"].data == {"completion": "x", "label": True, "references": []}
    assert built(tmp_path, [{"messages": [ASK, ANSWER]}], "nado", completion_field=None).train_prompts[0].text == "Hi"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": []}, "must end with a message of the user"),
        ({"messages": [SYSTEM]}, "must end with a message of the user"),
        ({"messages": [ANSWER]}, "must end with a message of the user"),
        ({"messages": [ASK, SYSTEM, AGAIN]}, "a system message that is not its first"),
        ({"messages": [ASK, {"role": "tool", "content": "3"}]}, "message 2: role 'tool' is none of system, user"),
        ({"messages": ["Hi"]}, "message 1 must be"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'content' must be a text"),
        ({"messages": [{"role": "user", "content": " "}]}, "'content' must be a text that is not blank"),
        ({"messages": "Hi", "prompt": 4}, "field 'prompt' must be a text"),
        ({"text": "Hi"}, "has no field 'prompt'"),
        ({"prompt": "A", "completion": "b", "label": "yes"}, r"'label' \(task.label_field\) must be true or false"),
        ({"prompt": "A", "completion": "b", "label": None}, "must be true or false"),
        ({"prompt": "A", "completion": "b", "label": False, "rejected": "c"}, "'rejected' is where"),
        ({"prompt": "A", "completion": 7}, "field 'completion' must be a text"),
        ({"prompt": "A", "completion": [ASK]}, "must be a text or one message of the assistant"),
        ({"messages": [ASK, ANSWER], "completion": "x"}, "ends with an answer"),
    ],
)
def test_malformed_rows_are_one_line(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        built(tmp_path, [{"prompt": "A"}, row])
    assert "p.jsonl line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_a_field_references_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'references' is where the oracle finds task.references_field=gold"):
        built(tmp_path, [{"prompt": "A", "references": "mine", "gold": "x"}], references_field="gold")


def test_runs_on_conversations(tmp_path: Path, command: Command) -> None:
    save_base(tmp_path / "model", chat_tokenizer())
    talks: list[dict[str, Any]] = [
        {"messages": [SYSTEM, ASK, ANSWER, {"role": "user", "content": text}]} for text in SIX
    ]
    save_prompts(tmp_path / "prompts.jsonl", talks)
    run = command(train, *small_words(tmp_path), "--json").json["run_dir"]
    shown = [json.loads(line) for line in (Path(run) / "samples" / "after.jsonl").read_text().splitlines()]
    assert shown[0]["prompt"].startswith("system: Be kind.\nuser: Hi\nassistant: Ho\nuser: Say ")
    out = tmp_path / "out.jsonl"
    assert command(generate, run, "--input", f"{tmp_path}/prompts.jsonl", "--output", str(out)).code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [talk["messages"] for talk in talks]
    system = command(train, *small_words(tmp_path, "base.system_prompt=Be brief."), "--dry-run")
    assert "has a system message of its own" in system.error
    plain = command(train, *small_words(tmp_path, "base.chat_template=false"), "--dry-run")
    assert "is a conversation" in plain.error


def test_sft_learns_completions(tmp_path: Path, command: Command) -> None:
    save_base(tmp_path / "model", chat_tokenizer())
    rows = [{"prompt": text, "completion": "aha", "label": label} for text in SIX for label in (True, False)]
    save_prompts(tmp_path / "prompts.jsonl", rows)
    assert "unknown density" in command(train, *small_words(tmp_path), "--dry-run").error
    words = [word for word in small_words(tmp_path) if not word.startswith(("targets.", "objective."))]
    words.append("method=sft")
    few = command(train, *words, "sft_data=references", "optim.batch_size=8", "--dry-run")
    assert few.code == 2 and "there are 4 references, fewer than optim.batch_size=8" in few.err
    result = command(train, *words, "sft_data=references", "optim.batch_size=2", "optim.rows_per_prompt=2", "--json")
    assert result.code == 0, result.err
    assert command(train, *words, "--dry-run").error.count("completion_field=null") == 1
