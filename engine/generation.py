"""Decoding of prompts with a trained run: samples, greedy texts, beams, or texts chosen among several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers.utils.logging import disable_progress_bar

from datamodules.tasks import build_task
from dinado.bases.decoder import Decoder
from dinado.bases.prompt_checks import check_prompts, forget
from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.resampling import resample
from dinado.oracles import Oracle
from dinado.prompt import Prompt
from dinado.rollouts.sampler import sample, uniforms
from engine.decoding_settings import Decoding
from engine.devices import device_of
from engine.restoring import restore_method
from lightning_modules.rollout_method import RolloutMethod
from workbench.run_folder import RunFolder


class Written(NamedTuple):
    """A text to write, its tokens, and what its record says about it beside the fields of the prompt."""

    text: str
    tokens: Sequence[int]
    more: dict[str, Any]


class Generation:
    """A trained run that answers prompts.

    Args:
        folder: the run.
        decoding: how it decodes.
        overrides: settings to change, such as the place of a base that has moved.

    Attributes:
        method: the run's method, with its trained weights.
        model: the controlled model.
        budget: largest number of tokens in a text.
    """

    def __init__(self, folder: RunFolder, decoding: Decoding, overrides: Sequence[str] = ()) -> None:
        self.decoding = decoding
        disable_progress_bar()  # that of the loading of weights, which would stand between the texts
        self.method: RolloutMethod = restore_method(folder, overrides=overrides)
        config = self.method.config
        self.method.to(device_of(config.trainer))
        self.model = self.method.controlled(decoding.alpha)
        self.budget = decoding.max_new_tokens or config.rollouts.max_new_tokens
        self._oracle: Oracle | None = None
        if decoding.exact is not None:
            folder.make_importable()
            self._oracle = build_task(config).oracle

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise :class:`DataError` for a prompt that does not fit the base, or that the oracle cannot read."""
        check_prompts(self.method.base, prompts, self.budget, "--max-new-tokens")
        forget(self.method.base)
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
        truncated = self.method.config.rollouts.truncated
        return choose(self.model, self._oracle, prompts, self.decoding, self.budget, truncated, start)


def choose(
    model: ControlledLM,
    oracle: Oracle,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    budget: int,
    truncated: str,
    start: int,
) -> list[list[Written]]:
    """Choose the texts of each prompt, each among K of its own.

    A record says whether the text is accepted, how many texts and tokens were drawn for it, their effective number, and
    log Z.
    """
    assert decoding.exact is not None, "there are K texts to choose among"
    num, found = decoding.num, []
    for answer in resample(
        model,
        oracle,
        [prompt for prompt in prompts for _ in range(num)],
        texts=decoding.exact,
        budget=decoding.budget,
        max_new_tokens=budget,
        truncated=truncated,
        seed=decoding.seed,
        offset=start * num,
    ):
        numbers = {
            "accepted": answer.accepted,
            "score": answer.score,
            "texts_drawn": answer.num_texts,
            "tokens_drawn": answer.num_tokens,
            "effective_texts": round(answer.effective, 3),
            "log_z": answer.log_z if answer.accepted else None,
        }
        empty = decoding.verify and not answer.accepted
        found.append(Written("" if empty else answer.text, () if empty else answer.tokens, numbers))
    return [found[i * num : (i + 1) * num] for i in range(len(prompts))]


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
