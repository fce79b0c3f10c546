"""A random two-layer GPT-2 whose next-token distribution depends on the whole prefix."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dinado.bases.markov import build_word_tokenizer
from dinado.oracles.tokens import EOS
from dinado.seeding import derive_seed

WIDTH = 32
EOS_SCALE = 0.25
"""Shrinks the end token's output row: a moderate probability in every seed that still depends on the prefix."""


def build_tiny_gpt2(vocab_size: int, seed: int) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A seeded GPT-2 (2 layers, width 32, 2 heads, 64 positions) in eval mode, and a word-level tokenizer.

    The weights are drawn much wider than GPT-2's 0.02, which would give nearly uniform predictions, and the output
    embedding is separate from the input's, which would make every token predict itself. The global random stream
    is left as it was.
    """
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=64,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("tiny_gpt2", seed))
        model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.lm_head.weight[EOS] *= EOS_SCALE
    return model.eval(), build_word_tokenizer(vocab_size)
