"""Sampling of K responses to each prompt from any causal model, with their log-probabilities.

A prompt is encoded once and its keys and values are shared by its K responses; responses that have ended leave the
batch. Axes: P prompts, S prompt tokens, K responses a prompt, N = P * K rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dinado.bases.decoder import Decoder
from dinado.rollouts.continuations import Likeliest, LikeliestSeen
from dinado.rollouts.proposal import Proposal
from dinado.rollouts.trace import Trace, TracedStates
from dinado.seeding import uniform_numbers

COMPACT_BELOW = 0.8
"""Finished rows are dropped from the batch once the share of unfinished rows is below this."""
CDF_BLOCK = 256
"""Number of tokens per block in the search for a sampled token."""


@dataclass
class Samples:
    """Responses, grouped by prompt.

    Attributes:
        tokens: token ids, the end-of-sequence token included when the response is finished.
        log_p: log-probability of each token under the full distribution of the sampled model, in nats.
        log_s: the same under the proposal, after temperature and truncation.
        finished: whether the response ended within the budget.
        prompt_of: index of the prompt.
        states: hidden states along the responses, if the decoder has layers to return.
        likeliest: the sampled model's likeliest tokens at each position, if candidates were asked for.
        drawn_by: what to record with the texts about a server that drew them.
    """

    tokens: list[list[int]] = field(default_factory=list)
    log_p: list[list[float]] = field(default_factory=list)
    log_s: list[list[float]] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    prompt_of: list[int] = field(default_factory=list)
    states: TracedStates | None = None
    likeliest: list[Likeliest] | None = None
    drawn_by: dict[str, str] = field(default_factory=dict)


def uniforms(
    prompts: Iterable[int], num_samples: int | Sequence[int], max_new_tokens: int, *stream: int | str, first: int = 0
) -> Tensor:
    """Draw uniform numbers ``[N, max_new_tokens]`` in float64, with a stream for each response to each prompt.

    More samples, more tokens or other prompts do not change the numbers of a response.

    Args:
        prompts: identifiers of the prompts, for example their positions in a split, in the order of their rows.
        num_samples: number of responses to each prompt, one number for all or one each.
        stream: name of the streams (dinado/seeding.py).
        first: number of the first response to each prompt.
    """
    prompts = list(prompts)
    counts = [num_samples] * len(prompts) if isinstance(num_samples, int) else num_samples
    rows = [(prompt, k) for prompt, count in zip(prompts, counts, strict=True) for k in range(first, first + count)]
    return torch.from_numpy(np.stack([uniform_numbers(max_new_tokens, *stream, *row) for row in rows]))


@torch.no_grad()
def sample(
    decoder: Decoder,
    ids_PS: Tensor,
    mask_PS: Tensor,
    eos_ids: tuple[int, ...],
    uniform_NT: Tensor,
    proposal: Proposal | None = None,
    counts: Sequence[int] | None = None,
    candidates: int = 0,
) -> Samples:
    """Draw responses of at most T tokens to each prompt.

    A row depends on its prompt and its uniform numbers alone, not on the other rows of the batch, as far as the
    model's arithmetic allows: matrix products round differently in batches of another size, and a uniform number very
    close to the border of two tokens may then select the other one.

    Args:
        ids_PS, mask_PS: left-padded prompts.
        eos_ids: tokens that end a response; a response without one after T tokens is not finished.
        uniform_NT: uniform numbers in float64, one per token, rows grouped by prompt (:func:`uniforms`).
        counts: number of rows of each prompt; None divides the rows evenly.
        candidates: number of likeliest tokens to return for each position; 0 for none.

    Raises:
        ValueError: the number of rows is not the sum of the counts, or cannot be divided evenly.
    """
    proposal = proposal or Proposal()
    num_rows, max_new_tokens = uniform_NT.shape
    if counts is None:
        counts = [num_rows // len(ids_PS)] * len(ids_PS)
    if sum(counts) != num_rows:
        raise ValueError(f"{num_rows} rows of uniform numbers for {len(ids_PS)} prompts with {sum(counts)} responses")
    device = ids_PS.device
    uniform_NT = uniform_NT.to(device)
    eos = torch.tensor(eos_ids, device=device)
    samples = Samples(
        tokens=[[] for _ in range(num_rows)],
        log_p=[[] for _ in range(num_rows)],
        log_s=[[] for _ in range(num_rows)],
        finished=[False] * num_rows,
        prompt_of=[prompt for prompt, count in enumerate(counts) for _ in range(count)],
    )
    alive_N = torch.arange(num_rows, device=device)
    open_N = torch.ones(num_rows, dtype=torch.bool, device=device)
    trace = Trace() if decoder.layers else None
    likely = LikeliestSeen(candidates) if candidates else None
    log_p_NV = decoder.start(ids_PS, mask_PS, torch.tensor(counts, device=device), max_new_tokens)
    if trace is not None:
        trace.begin(decoder.states_NLJD, mask_PS)
    for step in range(max_new_tokens):
        log_s_NV = proposal.log_probs(log_p_NV)
        token_N = inverse_cdf(log_s_NV, uniform_NT[alive_N, step])
        _record(samples, alive_N, open_N, token_N, log_p_NV, log_s_NV)
        if likely is not None:
            likely.add(log_p_NV[open_N], alive_N[open_N])
        ended_N = torch.isin(token_N, eos)
        for row in alive_N[open_N & ended_N].tolist():
            samples.finished[row] = True
        open_N = open_N & ~ended_N
        if step + 1 == max_new_tokens or not open_N.any():
            break
        if open_N.float().mean() < COMPACT_BELOW:
            rows = open_N.nonzero()[:, 0]
            decoder.keep(rows)
            alive_N, token_N, open_N = alive_N[rows], token_N[rows], open_N[rows]
        log_p_NV = decoder.step(token_N)
        if trace is not None:
            trace.add(decoder.states_NLJD[open_N, 0], alive_N[open_N])
    if trace is not None:
        samples.states = trace.result(num_rows)
    if likely is not None:
        samples.likeliest = likely.result(num_rows)
    return samples


def inverse_cdf(log_s_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Return the token at which the cumulative probability passes a uniform number, which is one number per row.

    The search has two levels, a block of tokens and a token in it, so that float64, which cumulative sums need, is
    applied to one block of the vocabulary and not to all of it.
    """
    num_tokens = log_s_NV.shape[1]
    p_NV = log_s_NV.exp()
    if excess := -num_tokens % CDF_BLOCK:
        p_NV = F.pad(p_NV, (0, excess))
    p_NCb = p_NV.view(len(p_NV), -1, CDF_BLOCK)
    cdf_NC = p_NCb.sum(2).double().cumsum(1)
    target_N1 = (uniform_N * cdf_NC[:, -1])[:, None]
    block_N1 = _first_above(cdf_NC, target_N1)
    inside_Nb = p_NCb.take_along_dim(block_N1[:, :, None], 1)[:, 0].double().cumsum(1)
    before_N1 = F.pad(cdf_NC, (1, 0)).gather(1, block_N1)
    return (block_N1 * CDF_BLOCK + _first_above(inside_Nb, target_N1 - before_N1))[:, 0]


def _first_above(cdf_NC: Tensor, target_N1: Tensor) -> Tensor:
    """Return the index ``[N, 1]`` of the first entry above the target, or of the last step if rounding left none."""
    return torch.minimum(torch.searchsorted(cdf_NC, target_N1, right=True), cdf_NC.argmax(1, keepdim=True))


def _record(
    samples: Samples, alive_N: Tensor, open_N: Tensor, token_N: Tensor, log_p_NV: Tensor, log_s_NV: Tensor
) -> None:
    column = token_N[:, None]
    log_p = log_p_NV.gather(1, column)[:, 0].tolist()
    log_s = log_s_NV.gather(1, column)[:, 0].tolist()
    tokens, still_open = token_N.tolist(), open_N.tolist()
    for index, row in enumerate(alive_N.tolist()):
        if still_open[index]:
            samples.tokens[row].append(tokens[index])
            samples.log_p[row].append(log_p[index])
            samples.log_s[row].append(log_s[index])
