"""Small runs to export, and what plain transformers makes of an exported folder.

Axes: N rows, L positions, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import exact_gpt2_words
from small_run import CHATML, chat_tokenizer, save_base, small_words
from torch import Tensor

import train
from dinado.bases.causal import BaseLM
from dinado.control.controlled_lm import ControlledLM
from engine.restoring import restore_method
from workbench import cli

TEMPERATURE = 0.7
SYSTEM = 'Be "brief", don\'t\nramble \\o/ €.'
DATED = "{% set today = strftime_now('%d %B %Y') %}Today is {{ today }}.\n" + CHATML
CHAT = [f"base.temperature={TEMPERATURE}", "optim.lr=0.05"]
LORA = ["method=dinado_merge", "lora.r=2"]


def train_here(folder: Path, experiment: str, *words: str) -> Path:
    """Train in this process and return the folder of the run."""
    before = set(folder.glob("runs/*/*"))
    assert cli.run(train.main, "", train.OPTIONS, True, [experiment, *words]) == 0
    (run,) = set(folder.glob("runs/*/*")) - before
    return run


def chat_run(folder: Path, *words: str) -> Path:
    """Train a small chat model with a system prompt and a date in its template, at a temperature of its own."""
    if not (folder / "model").exists():
        save_base(folder / "model", chat_tokenizer(DATED), {"eos_token_id": [2, 0], "repetition_penalty": 1.3})
    experiment, *others = small_words(folder, *CHAT, *words)
    given = [word for word in others if not word.startswith("oracle.")]
    said = [] if any(word.startswith("base.system_prompt") for word in words) else [f"base.system_prompt={SYSTEM}"]
    return train_here(folder, experiment, *given, *said, "oracle.name=regex", "oracle.pattern=[a-z]")


def exact_run(folder: Path, *words: str) -> Path:
    """Train on the random GPT-2 of an exact world."""
    return train_here(folder, "exact_world", *exact_gpt2_words(folder, f"base.temperature={TEMPERATURE}", *words))


def restored(run: Path) -> tuple[BaseLM, ControlledLM]:
    """The run itself: its base and the model that it decodes with."""
    method = restore_method(run)
    return method.base, method.controlled()


@torch.no_grad()
def log_probs(model: Any, ids_NL: Tensor, temperature: float = 1.0) -> Tensor:
    """Next-token log-probabilities of softmax(logits / temperature), ``[N, L, V]``."""
    return (model(input_ids=ids_NL, attention_mask=torch.ones_like(ids_NL)).logits / temperature).log_softmax(-1)


def some_ids(base: BaseLM, rows: int = 3, length: int = 12) -> Tensor:
    """Random token ids ``[N, L]``."""
    return torch.randint(base.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
