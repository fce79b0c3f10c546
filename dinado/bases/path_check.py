"""A check of a base when it is loaded: every path gives the log-probabilities of a plain pass.

A model may count slots where positions are meant, ignore the mask, or keep a state outside the cache. All of these run
without an error, so a few tokens are compared with passes of one sequence each, without padding and without a cache.
Axes: P prompts, B responses, T response tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dinado.bases.decoder import Decoder
from dinado.batch import RolloutBatch
from dinado.errors import UserError

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Largest difference in nats; in half precision it is a mean, because rounding may move a single token far."""
LONGEST_WINDOW = 64
"""Texts of the check exceed a model's window if the window has at most this many tokens."""


class Probed(Protocol):
    """The part of a base that is checked."""

    model: Any
    temperature: float
    eos_ids: tuple[int, ...]
    pad_id: int
    window: int | None
    context: int | None

    def log_probs(self, batch: RolloutBatch) -> Tensor:
        """Return the log-probability of every response token, ``[B, T]``."""


@torch.no_grad()
def check_paths(base: Probed, name: str) -> None:
    """Compare teacher forcing and the sampler's decoder with plain passes on two prompts that begin alike.

    Raises:
        UserError: they differ, or the model cannot be run in this way at all.
    """
    where = f"base.name={name}: {type(base.model).__name__}"
    prompts, responses = _texts(base)
    width = max(map(len, prompts))
    # Padding is masked; a padding token without an embedding is reported with the prompts, by its own name.
    pad = base.pad_id if 0 <= base.pad_id < base.model.get_output_embeddings().weight.shape[0] else 0
    pads = [[pad] * (width - len(prompt)) for prompt in prompts]
    device = base.model.get_output_embeddings().weight.device
    ids_PS = torch.tensor([[*pad, *prompt] for pad, prompt in zip(pads, prompts, strict=True)], device=device)
    mask_PS = torch.tensor([[0] * len(pad) + [1] * (width - len(pad)) for pad in pads], device=device)
    try:
        wanted = [_plain(base, prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        forced_BT = base.log_probs(RolloutBatch.unjudged(ids_PS, mask_PS, range(len(prompts)), responses))
        stepped_BT = _stepped(base, ids_PS, mask_PS, responses)
    except UserError:
        raise
    # Models outside the common interface fail here in as many ways as there are models.
    except Exception as error:
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(f"{where} cannot be run on shared prompts with a cache ({reason})") from None
    for path, found_BT in (("teacher forcing", forced_BT), ("sampling", stepped_BT)):
        pairs = [(found_BT[row, : len(want_T)], want_T) for row, want_T in enumerate(wanted)]
        differences = torch.cat([(found_T - want_T).abs() for found_T, want_T in pairs])
        half = base.model.dtype in (torch.float16, torch.bfloat16)
        nats = float(differences.mean() if half else differences.max())
        if not nats <= TOLERANCE.get(base.model.dtype, 0.5):
            raise UserError(
                f"{where}: log-probabilities in {path} differ by {nats:.2g} nats from a plain pass of the same model; "
                "it is not supported"
            )


def _texts(base: Probed) -> tuple[list[list[int]], list[list[int]]]:
    """Return two prompts that begin alike and a response to each, longer than a short window."""
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    special = {*base.eos_ids, base.pad_id}
    plain = [token for token in range(min(vocabulary, 4096)) if token not in special] or [0]
    longer = base.window if base.window and base.window <= LONGEST_WINDOW else 0
    if base.context is not None:
        longer = min(longer, max(0, base.context - 10))
    tokens = [plain[(37 * place + place * place) % len(plain)] for place in range(longer + 12)]
    common, own, tail = tokens[: longer + 2], tokens[longer + 2 : longer + 6], tokens[longer + 6 :]
    return [[*common, *own], [*common, own[2]]], [tail[:3], tail[2:6]]


def _plain(base: Probed, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Return log p of a response's tokens ``[T]`` from one pass of one sequence."""
    weight = base.model.get_output_embeddings().weight
    ids_1L = torch.tensor([[*prompt, *response]], device=weight.device)
    kwargs = {"use_cache": False} if "use_cache" in inspect.signature(base.model.forward).parameters else {}
    logits_TV = base.model(ids_1L, **kwargs).logits[0, len(prompt) - 1 : -1].float() / base.temperature
    return logits_TV.log_softmax(1).gather(1, ids_1L[0, len(prompt) :, None])[:, 0]


def _stepped(base: Probed, ids_PS: Tensor, mask_PS: Tensor, responses: Sequence[Sequence[int]]) -> Tensor:
    """Return log p of the tokens as the sampler's decoder gives them, ``[B, T]`` up to the shortest response."""
    decoder, found = Decoder(base.model, base.temperature), []
    steps = max(map(len, responses))
    log_p_NV = decoder.start(ids_PS, mask_PS, 1, steps)
    for step in range(steps):
        token_N = torch.tensor([row[min(step, len(row) - 1)] for row in responses], device=ids_PS.device)
        found.append(log_p_NV.gather(1, token_N[:, None])[:, 0])
        if step + 1 < steps:
            log_p_NV = decoder.step(token_N)
    return torch.stack(found, 1)
