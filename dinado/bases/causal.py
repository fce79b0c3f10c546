"""The pretrained language model p(y|c), frozen, behind one interface.

The rest of the package reads from a :class:`BaseLM` only its output head and states aligned with response tokens, so
a base with an encoder needs only another implementation of :meth:`BaseLM.states`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dinado.bases.architecture import (
    check_length,
    context_of,
    output_map,
    refuse_architecture,
    state_width,
    text_config,
    widened,
    window_of,
)
from dinado.bases.identity import model_digest
from dinado.bases.loading import load_causal
from dinado.bases.path_check import check_paths
from dinado.bases.shared_prefix import align, run_shared
from dinado.batch import RolloutBatch
from dinado.errors import DataError, UserError
from dinado.objectives.reduction import Head
from dinado.objectives.vocabulary import token_log_probs
from dinado.prompt import Prompt


class InStep(Protocol):
    """Synchronisation of the ranks that hold shards of one base (dinado/bases/sharding.py)."""

    def in_step(self, answer: Callable[[Tensor], None] | None = None) -> AbstractContextManager[None]:
        """Return a context in which ranks may run the base unequal numbers of times."""


Switch = Callable[[nn.Module, bool], AbstractContextManager[None]]
"""A function that returns a context in which the adapters in a model are on (True) or off."""


@dataclass
class LMStates:
    """Hidden states of a batch from the base.

    Attributes:
        hidden_BTD: last hidden states; row t predicts response token t.
        prompt_mask_PS: 1 where a prompt position is real.
        prompt_taps, response_taps: for each requested depth, states at prompt positions ``[P, S, D]`` and at all
            response tokens but the last ``[B, T - 1, D]``.
    """

    hidden_BTD: Tensor
    prompt_mask_PS: Tensor
    prompt_taps: list[Tensor]
    response_taps: list[Tensor]


class BaseLM(nn.Module):
    """A frozen causal language model, its tokenizer, and the temperature that is part of p.

    Args:
        model: a transformers causal LM; put into eval mode and frozen here.
        tokenizer: its tokenizer; padding side is set to the left.
        temperature: p = softmax(logits / temperature).
        chat_template: wrap prompts in the tokenizer's chat template when it has one.
        system_prompt: system message of the template; None keeps the template's default.
        name: the name of the base in reports.

    Attributes:
        window: the number of slots that a token attends to in some layer; None for all.
        context: the largest number of tokens, prompt and response, that the model reads right; None for any.
        shards: synchronises the ranks that hold shards of the layers (dinado/bases/sharding.py); None if unsharded.
    """

    model: Any
    eos_ids: tuple[int, ...]
    shards: InStep | None = None

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        temperature: float = 1.0,
        chat_template: bool = True,
        system_prompt: str | None = None,
        name: str = "base",
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.chat_template = chat_template and getattr(tokenizer, "chat_template", None) is not None
        self.system_prompt = system_prompt
        self.name = name
        self._switches: list[Switch] = []
        tokenizer.padding_side = "left"
        ids = model.generation_config.eos_token_id
        ids = tokenizer.eos_token_id if ids is None else ids
        if ids is None:
            raise UserError(f"base.name={name}: the model has no end-of-sequence token, so no response ever ends")
        self.eos_ids = tuple(ids) if isinstance(ids, list | tuple) else (ids,)
        pad = tokenizer.pad_token_id
        self.pad_id: int = self.eos_ids[0] if pad is None else pad
        refuse_architecture(model, name)
        self.window, self.context = window_of(model), context_of(model)
        self._output_map = output_map(model, name)
        check_paths(self, name)
        # Computed before any adapter is added, so that it covers the pretrained weights alone.
        self._digest = model_digest(model, tokenizer)

    @classmethod
    def load(
        cls,
        path_or_name: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        name: str | None = None,
        **kwargs: Any,
    ) -> BaseLM:
        """Load a Hugging Face causal model by hub name or path; see the class for the keyword arguments.

        Raises:
            DataError: see :func:`dinado.bases.loading.load_causal`.
        """
        model, tokenizer = load_causal(path_or_name, revision=revision, dtype=dtype)
        return cls(model, tokenizer, name=name or path_or_name, **kwargs)

    def train(self, mode: bool = True) -> BaseLM:
        """Stay in eval mode: a frozen base never applies dropout."""
        return super().train(False)

    def add_switch(self, switch: Switch) -> None:
        """Register the switch of adapters that were injected into the model."""
        if switch not in self._switches:
            self._switches.append(switch)

    def remove_switch(self, switch: Switch) -> None:
        """Remove the switch of adapters that have been removed."""
        self._switches.remove(switch)

    @contextmanager
    def adapters(self, *, on: bool) -> Iterator[None]:
        """Switch all adapters in the model on or off within the context."""
        with ExitStack() as stack:
            for switch in self._switches:
                stack.enter_context(switch(self.model, on))
            yield

    @property
    def has_adapters(self) -> bool:
        """Whether adapters have been injected into the model."""
        return bool(self._switches)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    def in_step(self, answer: Callable[[Tensor], None] | None = None) -> AbstractContextManager[None]:
        """Enter a block in which ranks may run the base unequal numbers of times.

        A rank that is done keeps serving the collectives of the others. The context has no effect where each rank has
        all layers; see :meth:`dinado.bases.sharding.Shards.in_step`.
        """
        return nullcontext() if self.shards is None else self.shards.in_step(answer)

    @property
    def hidden_size(self) -> int:
        """The width D of the last hidden states, which the output head reads."""
        return self.model.get_output_embeddings().weight.shape[1]

    @property
    def state_width(self) -> int:
        """The width of states at every depth; narrower ones end in zeros."""
        return state_width(self.model)

    @property
    def vocab_size(self) -> int:
        """The vocabulary size V: the number of rows of the output embedding."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def num_layers(self) -> int:
        """The number of layers, each with keys and values."""
        return text_config(self.model).num_hidden_layers

    def layer(self, depth: float) -> int:
        """Return the layer number at a depth given as a fraction; 0 is the token embeddings."""
        return round(depth * self.num_layers)

    @property
    def head(self) -> Head:
        """The output embedding with the base temperature folded in, without adapters."""
        out = self.model.get_output_embeddings()
        scale, cap = self._output_map
        return Head(out.weight, out.bias, scale / self.temperature, None if cap is None else cap / self.temperature)

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever p(y|c) does; see also :func:`dinado.bases.identity.model_digest`."""
        parts = (self._digest, self.temperature, self.chat_template, self.system_prompt, self.eos_ids)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Return token ids and mask ``[P, S]``, left-padded; an empty prompt becomes a beginning-of-sequence token."""
        rows = [self._encode(prompt) for prompt in prompts]
        width = max(map(len, rows))
        ids_PS = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        mask_PS = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids_PS[index, width - len(row) :] = torch.tensor(row)
            mask_PS[index, width - len(row) :] = 1
        return ids_PS, mask_PS

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of a response without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True).strip()

    def states(self, batch: RolloutBatch, taps: Sequence[float] = (), *, grad: bool = False) -> LMStates:
        """Return the hidden states of a batch, with adapters if they are switched on.

        Args:
            taps: depths to return as well, fractions of the layers (0 token embeddings, 1 the last layer).
            grad: keep the graph, for adapters in the model.

        Raises:
            UserError: a text is longer than the model's context.
        """
        if self.context is not None:
            length_B = batch.prompt_mask_PS.sum(1)[batch.prompt_of_row_B] + batch.response_mask_BT.sum(1) - 1
            check_length(self.context, int(length_B.max()))
        indices = [self.layer(depth) for depth in taps]
        body = self.model.base_model

        def run(ids: Tensor, **kwargs: Any) -> tuple[Tensor, ...]:
            out = body(ids, use_cache=True, output_hidden_states=bool(indices), **kwargs)
            last = out.last_hidden_state
            tapped = (last if i == self.num_layers else out.hidden_states[i] for i in indices)
            return last, *(widened(state, self.state_width) for state in tapped)

        answers: list[Tensor] = []
        with (
            nullcontext() if grad else torch.no_grad(),
            self.in_step(lambda ids: answers.append(0.0 * run(ids)[0].sum())),
        ):
            ran = run_shared(
                run,
                batch.prompt_ids_PS,
                batch.prompt_mask_PS,
                batch.prompt_of_row_B,
                batch.response_BT[:, :-1],
                batch.response_mask_BT[:, :-1],
                self.window,
            )
            hidden_BTD = align(ran.at_prompt[0], ran.at_response[0], batch.prompt_of_row_B)
        for nothing in answers:  # part of the graph, so that all ranks run equally many backward passes
            hidden_BTD = hidden_BTD + nothing
        return LMStates(hidden_BTD, ran.prompt_mask_PS, list(ran.at_prompt[1:]), list(ran.at_response[1:]))

    @torch.no_grad()
    def log_probs(self, batch: RolloutBatch) -> Tensor:
        """Return the full-base log-probability of every response token, ``[B, T]`` float32, 0 on padding."""
        hidden_BTD, tokens_BT1 = self.states(batch).hidden_BTD, batch.response_BT[..., None]
        return token_log_probs(hidden_BTD, self.head, tokens_BT1, batch.response_mask_BT)[..., 0]

    def _encode(self, prompt: Prompt) -> list[int]:
        if self.chat_template:
            if self.system_prompt is not None and any(turn.role == "system" for turn in prompt.turns):
                raise DataError(f"base.system_prompt: prompt {prompt.id!r} has a system message of its own; remove one")
            messages = prompt.messages(self.system_prompt)
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if prompt.turns:
            raise DataError(
                f"prompt {prompt.id!r} is a conversation, and {self.name} is used without a chat template; give a text"
            )
        ids = self.tokenizer(prompt.text)["input_ids"] if prompt.text else []
        start = self.tokenizer.bos_token_id
        return ids or [self.eos_ids[0] if start is None else start]
