"""Decoding of prompts with trained runs: samples, greedy texts, beams, or texts chosen among several."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch

from dinado.bases.decoder import Decoder
from dinado.bases.prompt_checks import check_prompts, forget
from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.answers import Answer
from dinado.decoding.quasi_rejection import quasi_rejection
from dinado.decoding.resampling import resample
from dinado.decoding.twists import Twist, product_of
from dinado.oracles import Oracle
from dinado.prompt import Prompt
from dinado.rollouts.sampler import sample, uniforms
from engine.composing import restore_controlled
from engine.decoding_settings import Decoding
from engine.run_twist import twist_of
from workbench.run_folder import RunFolder


class Written(NamedTuple):
    """A text to write, its tokens, and what its record says about it beside the fields of the prompt."""

    text: str
    tokens: Sequence[int]
    more: dict[str, Any]


class Generation:
    """A trained run, or several that decode together, that answers prompts.

    Args:
        folders: the runs.
        decoding: how they decode.
        overrides: settings to change, such as the place of a base that has moved.

    Attributes:
        methods: their methods, with trained weights.
        model: the controlled model.
        budget: largest number of tokens in a text.
    """

    def __init__(self, folders: Sequence[RunFolder], decoding: Decoding, overrides: Sequence[str] = ()) -> None:
        self.decoding = decoding
        restored = restore_controlled(folders, overrides, decoding.alphas)
        self.methods, self.model, self.truncated = restored.methods, restored.model, restored.truncated
        self.budget = decoding.max_new_tokens or restored.max_new_tokens
        self._oracle: Oracle | None = None
        self._twist: Twist | None = None
        if decoding.exact is not None:
            tasks = restored.tasks()
            self._oracle = reduce(operator.and_, (task.oracle for task in tasks))
            if decoding.decoder == "smc":
                self._twist = product_of([twist_of(*pair) for pair in zip(self.methods, tasks, strict=True)])

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise :class:`DataError` for a prompt that does not fit the base, or that the oracle cannot read."""
        check_prompts(self.model.base, prompts, self.budget, "--max-new-tokens")
        forget(self.model.base)
        if self._oracle is not None:
            self._oracle.check_prompts(prompts)

    @torch.no_grad()
    def answers(self, prompts: Sequence[Prompt], start: int) -> list[list[Written]]:
        """Decode the texts of some prompts.

        Args:
            start: number of the first prompt, which names the random streams.
        """
        if self._oracle is None:
            return decode(self.model, prompts, self.decoding, self.budget, start)
        num = self.decoding.num
        asked = [prompt for prompt in prompts for _ in range(num)]
        found = [self._written(answer) for answer in self._chosen(self._oracle, asked, start * num)]
        return [found[i * num : (i + 1) * num] for i in range(len(prompts))]

    def _chosen(self, oracle: Oracle, prompts: Sequence[Prompt], offset: int) -> Sequence[Answer | None]:
        """Choose a text for each prompt among K of its own; None where none could be had."""
        decoding = self.decoding
        assert decoding.exact is not None and decoding.budget is not None, "there are K texts to choose among"
        common: dict[str, Any] = {
            "texts": decoding.exact,
            "budget": decoding.budget,
            "max_new_tokens": self.budget,
            "truncated": self.truncated,
            "seed": decoding.seed,
            "offset": offset,
        }
        if decoding.decoder == "qrs":
            assert decoding.log_beta is not None, "the command line asks for one"
            return quasi_rejection(self.model, oracle, prompts, log_beta=decoding.log_beta, **common)
        return resample(self.model, oracle, prompts, twist=self._twist, threshold=decoding.ess, **common)

    def _written(self, answer: Answer | None) -> Written:
        """Return what is written of an answer: whether it is accepted, and what was drawn for it."""
        if answer is None:
            return Written("", (), {"accepted": False})
        numbers = {
            "accepted": answer.accepted,
            "score": answer.score,
            "log_weight": answer.log_weight if answer.accepted else None,
            "texts_drawn": answer.num_texts,
            "tokens_drawn": answer.num_tokens,
            "effective_texts": round(answer.effective, 3),
            "log_z": answer.log_z if answer.accepted else None,
        }
        empty = self.decoding.verify and not answer.accepted
        return Written("" if empty else answer.text, () if empty else answer.tokens, numbers)


def decode(
    model: ControlledLM, prompts: Sequence[Prompt], decoding: Decoding, budget: int, start: int
) -> list[list[Written]]:
    """Decode the texts of each prompt: independent samples, the greedy text, or the best beams."""
    base, mode, num = model.base, decoding.mode, decoding.num
    ids_PS, mask_PS = (tensor.to(base.device) for tensor in base.encode_prompts(prompts))
    if mode == "sample":
        uniform_NT = uniforms(range(start, start + len(prompts)), num, budget, decoding.seed, "generate")
        rows = sample(Decoder(model), ids_PS, mask_PS, base.eos_ids, uniform_NT).tokens
    else:
        width = 1 if mode == "greedy" else max(decoding.beams, num)
        out = model.generate(
            input_ids=ids_PS,
            attention_mask=mask_PS,
            do_sample=False,
            num_beams=width,
            num_return_sequences=num if mode == "beam" else 1,
            max_new_tokens=budget,
        )
        rows = [_to_end(row, base.eos_ids) for row in out[:, ids_PS.shape[1] :].tolist()]
    texts = [Written(base.decode(row), row, {}) for row in rows]
    each = len(texts) // len(prompts)
    return [texts[i * each : (i + 1) * each] for i in range(len(prompts))]


def _to_end(row: list[int], eos_ids: Sequence[int]) -> list[int]:
    """Return the tokens up to the first end of text, behind which a shorter row of a batch is padded."""
    ends = [place for place, token in enumerate(row) if token in eos_ids]
    return row[: ends[0] + 1] if ends else row
