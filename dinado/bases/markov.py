"""An order-1 Markov language model as an ordinary transformers model, to compare the real code with exact answers.

Axes: B batch, T tokens, V vocabulary (also the hidden width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from dinado.errors import ConfigError
from dinado.oracles.tokens import EOS
from dinado.seeding import generator

EOS_LOGIT = 1.4
"""Logit of the end token after any token.

With a vocabulary of 12, responses then have about 5 tokens, and two given tokens rarely both occur."""


class MarkovConfig(PreTrainedConfig):
    """The configuration of a :class:`MarkovForCausalLM`; ``hidden_size`` is the vocabulary size by construction.

    The token that ends a response also begins it (it is the whole prompt of an exact world) and pads it.
    """

    model_type = "dinado_markov"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 12
    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    use_cache: bool = True
    bos_token_id: int | None = EOS
    eos_token_id: int | list[int] | None = EOS
    pad_token_id: int | None = EOS
    tie_word_embeddings: bool = False

    @property
    def hidden_size(self) -> int:
        return self.vocab_size


class MarkovPreTrainedModel(PreTrainedModel):
    config_class = MarkovConfig
    base_model_prefix = "model"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the embeddings to the identity and the transition table to uniform."""
        if isinstance(module, nn.Embedding):
            init.eye_(module.weight)
        elif isinstance(module, nn.Linear):
            init.zeros_(module.weight)


class MarkovModel(MarkovPreTrainedModel):
    """The body of the model; the hidden state of a token is its one-hot vector, independent of earlier tokens."""

    def __init__(self, config: MarkovConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return one-hot hidden states ``[B, T, V]``; ``attention_mask`` and ``position_ids`` have no effect."""
        hidden_BTV = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache
        if use_cache:
            if past_key_values is None:
                past_key_values = DynamicCache(config=self.config)
            # The model needs no cache, but generate() reads its position from the length of the cache.
            key_B1T1 = hidden_BTV.new_zeros(hidden_BTV.shape[0], 1, hidden_BTV.shape[1], 1)
            past_key_values.update(key_B1T1, key_B1T1.clone(), 0)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_BTV,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(hidden_BTV, hidden_BTV) if output_hidden_states else None,
        )


class MarkovForCausalLM(MarkovPreTrainedModel, GenerationMixin):
    """A model with ``logits[v] = table[last, v]``; the one-hot state picks a row of the transposed output embedding."""

    def __init__(self, config: MarkovConfig) -> None:
        super().__init__(config)
        self.model = MarkovModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return next-token logits ``[B, T, V]``, and the mean cross entropy of ``labels`` (shifted here) if given."""
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits_BTV, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


# A saved exact world then loads through the Auto classes like any other checkpoint.
AutoConfig.register(MarkovConfig.model_type, MarkovConfig, exist_ok=True)
AutoModel.register(MarkovConfig, MarkovModel, exist_ok=True)
AutoModelForCausalLM.register(MarkovConfig, MarkovForCausalLM, exist_ok=True)


def transition_table(vocab_size: int, seed: int, required: Sequence[int] = (), rarity: float = 0.0) -> Tensor:
    """Return the transition logits ``[V (last token), V (next token)]`` of the seeded world.

    They are standard normal, but the end token has the logit ``EOS_LOGIT`` after every token. ``rarity`` is added to
    the columns of the ``required`` tokens; a negative value makes them rare, and success with an oracle that asks for
    them.

    Raises:
        ConfigError: fewer than two tokens, or a required token that is not one of 1 to V - 1.
    """
    if vocab_size < 2:
        raise ConfigError(f"task.vocab_size={vocab_size}: a vocabulary needs the end token and at least one other")
    if bad := [token for token in required if not 0 < token < vocab_size]:
        raise ConfigError(
            f"task.required holds token {bad[0]}; with task.vocab_size={vocab_size} use 1 to {vocab_size - 1}"
        )
    table_VV = torch.randn(vocab_size, vocab_size, generator=generator("markov", seed))
    table_VV[:, EOS] = EOS_LOGIT
    table_VV[:, sorted(set(required))] += rarity
    return table_VV


def build_word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer: ``"<eos>"`` is token 0, ``"1" .. "V-1"`` are themselves; it pads on the left.

    ``decode([3, 7, 0])`` is ``"3 7 <eos>"``, or ``"3 7"`` with special tokens skipped. An unknown word is an error.
    """
    words = {"<eos>": EOS} | {str(token): token for token in range(1, vocab_size)}
    backend = Tokenizer(WordLevel(words))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<eos>",
        eos_token="<eos>",
        pad_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_markov(
    vocab_size: int, seed: int, required: Sequence[int] = (), rarity: float = 0.0
) -> tuple[MarkovForCausalLM, PreTrainedTokenizerFast]:
    """Return the seeded base of :func:`transition_table` as a model in eval mode, and its tokenizer.

    The global random state is left unchanged.

    Raises:
        ConfigError: see :func:`transition_table`.
    """
    table_VV = transition_table(vocab_size, seed, required, rarity)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = MarkovForCausalLM(MarkovConfig(vocab_size=vocab_size))
        model.lm_head.weight.copy_(table_VV.T)
    return model.eval(), build_word_tokenizer(vocab_size)
