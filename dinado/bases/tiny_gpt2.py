"""A random two-layer GPT-2 whose next-token distribution depends on the whole prefix."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dinado.bases.markov import build_word_tokenizer
from dinado.oracles.tokens import EOS
from dinado.seeding import derive_seed

WIDTH = 32
EOS_SCALE = 0.25
"""Factor of the end token's output row: its probability is then moderate for every seed, but depends on the prefix."""


def build_tiny_gpt2(vocab_size: int, seed: int) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Return a seeded GPT-2 (2 layers, width 32, 2 heads, 64 positions) in eval mode, and a word-level tokenizer.

    The standard deviation of the weights is far above GPT-2's 0.02, with which predictions would be nearly uniform.
    The output embedding is not tied to the input embedding, because every token would then predict itself. The global
    random state is left unchanged.
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
