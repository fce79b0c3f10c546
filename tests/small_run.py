"""Small runs of a user's own: tiny bases that can read any text, prompts, oracles, and the words of a command."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers import tiny_llama
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ORACLE = "def has_a(prompts, texts):\n    return ['a' in text.lower() or 'e' in text.lower() for text in texts]\n"
CHATML = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(specials: Sequence[str] = ("<|endoftext|>",), **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte, the special tokens first."""
    vocabulary = {token: index for index, token in enumerate(specials)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    if not settings:
        settings = {"bos_token": specials[0], "eos_token": specials[0]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **settings)


def chat_tokenizer(template: str = CHATML, **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template whose turns end in ``<|im_end|>``, token 2."""
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    given = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template} | settings
    return byte_tokenizer(specials, **given)


def save_base(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    generation: Mapping[str, Any] | None = None,
    vocab_size: int | None = None,
    **settings: object,
) -> Path:
    """Save a tiny random Llama and its tokenizer.

    Args:
        generation: changes of its ``generation_config.json``.
        vocab_size: rows of its embedding; by default as many as the tokenizer has tokens.
        settings: changes of its configuration.
    """
    tokenizer = tokenizer or byte_tokenizer()
    settings = {"max_position_embeddings": 512, "pad_token_id": None} | settings
    model = tiny_llama(vocab_size or len(tokenizer), **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if generation is not None:
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(generation)))
    return folder


def save_prompts(file: Path, rows: Iterable[str | Mapping[str, Any]]) -> Path:
    """Write prompts, texts or whole rows, as JSON lines."""
    found = [{"prompt": row} if isinstance(row, str) else row for row in rows]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in found))
    return file


SIX = [f"Say {letter}." for letter in "abcdef"]


def small_words(folder: Path, *overrides: str) -> list[str]:
    """The words of a small run after ``train.py``: its base, prompts and oracle lie in ``folder``, and so do its runs.

    Without a file of that name, ``prompts.jsonl`` and ``mine.py`` are written.
    """
    if not (folder / "prompts.jsonl").exists():
        save_prompts(folder / "prompts.jsonl", SIX)
    if not (folder / "mine.py").exists():
        (folder / "mine.py").write_text(ORACLE)
    return [
        "quickstart",
        f"runs={folder}/runs",
        f"data.cache={folder}/cache",
        f"base.name={folder}/model",
        "task.name=jsonl",
        f"task.path={folder}/prompts.jsonl",
        "oracle.name=user",
        "oracle.function=mine:has_a",
        "data.train_prompts=0",
        "data.val_prompts=2",
        "rollouts.per_prompt=8",
        "rollouts.max_new_tokens=8",
        "rollouts.truncated=score",
        "eval.rollouts_per_prompt=4",
        "eval.max_rollouts=8",
        "eval.samples_per_prompt=4",
        "eval.best_of=2",
        "optim.batch_size=8",
        "optim.steps=2",
        "optim.rows_per_prompt=4",
        "objective.lookahead.weight=0",
        "targets.positives_share=0",
        "trainer.accelerator=cpu",
        "trainer.progress=false",
        *overrides,
    ]


def losses(run: str) -> list[float]:
    """The training loss of every step of a run."""
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return list({row["step"]: row["train/loss"] for row in rows if "train/loss" in row}.values())
