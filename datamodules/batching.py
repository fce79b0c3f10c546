"""Which rows go into which optimiser step, micro-batch and process, and how they become tensors.

Axes: N rows, G groups, P prompts, S prompt tokens, B rows of a batch, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datamodules.rows import Rows, rows_by_prompt
from dinado.batch import RecordedStates, RolloutBatch
from dinado.errors import ConfigError
from dinado.models.base_lm import BaseLM
from dinado.prompt import Prompt
from dinado.seeding import generator


class BatchPlan:
    """An endless sequence of optimiser steps over some rows, the same on any number of processes.

    An epoch is every row once: the rows of each prompt, shuffled, are cut into groups; the groups are shuffled and
    laid end to end; steps are cut from epoch after epoch without regard to where one ends. What is left of an epoch
    opens the next step.

    Args:
        rows: where ``use_N`` points into.
        use_N: rows that take part.
        batch_size: rows in an optimiser step.
        rows_per_prompt: largest group of rows of one prompt.
        seed, name: name the random streams.
    """

    def __init__(
        self, rows: Rows, use_N: np.ndarray, batch_size: int, rows_per_prompt: int, seed: int, name: str = "batches"
    ) -> None:
        self._use_N = use_N
        self._name = name
        self._prompt_N = rows.prompt_index_N[use_N]
        self._length_N = rows.length_N[use_N]
        self._batch_size = batch_size
        self._rows_per_prompt = rows_per_prompt
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def step(self, index: int) -> np.ndarray:
        """The ``batch_size`` rows of an optimiser step, groups side by side, short responses first."""
        stream = np.arange(index * self._batch_size, (index + 1) * self._batch_size)
        epochs, offsets = stream // len(self._use_N), stream % len(self._use_N)
        row_B = np.empty(len(stream), dtype=np.int64)
        group_B = np.empty((len(stream), 2), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order_N, group_N = self._epoch(int(epoch))
            row_B[here] = order_N[offsets[here]]
            group_B[here] = np.stack([epochs[here], group_N[offsets[here]]], 1)
        # Similar lengths share a micro-batch, which saves padding and changes no sum over the step.
        _, group_B = np.unique(group_B, axis=0, return_inverse=True)
        longest_G = np.zeros(group_B.max() + 1, dtype=np.int64)
        np.maximum.at(longest_G, group_B, self._length_N[row_B])
        return self._use_N[row_B[np.lexsort((group_B, longest_G[group_B]))]]

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions in ``use_N`` in the order of this epoch, and the number of the group each belongs to."""
        stream = generator(self._seed, self._name, epoch)
        shuffled_N = torch.randperm(len(self._use_N), generator=stream).numpy()
        size = self._rows_per_prompt
        groups = [
            shuffled_N[rows_K[start : start + size]]
            for rows_K in rows_by_prompt(self._prompt_N[shuffled_N])
            for start in range(0, len(rows_K), size)
        ]
        groups = [groups[g] for g in torch.randperm(len(groups), generator=stream).tolist()]
        return np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(group) for group in groups])


class StratifiedPlan:
    """Steps with a fixed number of rows from each of several strata, each stratum with epochs of its own.

    Args:
        rows: where the strata point into.
        strata_N: disjoint sets of rows.
        counts: rows of each stratum in a step.
        rows_per_prompt, seed: see :class:`BatchPlan`.
    """

    def __init__(
        self, rows: Rows, strata_N: Sequence[np.ndarray], counts: Sequence[int], rows_per_prompt: int, seed: int
    ) -> None:
        self._length_N = rows.length_N
        self._plans = [
            BatchPlan(rows, use_N, count, rows_per_prompt, seed, f"batches of stratum {index}")
            for index, (use_N, count) in enumerate(zip(strata_N, counts, strict=True))
        ]

    def step(self, index: int) -> np.ndarray:
        """The rows of an optimiser step, short responses first."""
        row_B = np.concatenate([plan.step(index) for plan in self._plans])
        return row_B[np.argsort(self._length_N[row_B], kind="stable")]


def stratum_weights(strata_N: Sequence[np.ndarray], counts: Sequence[int]) -> list[float]:
    """What a row of each stratum has to count for so that a step's loss keeps its expectation: N_s / N over n_s / B."""
    num_rows, num_drawn = sum(map(len, strata_N)), sum(counts)
    return [(len(rows) / num_rows) / (count / num_drawn) for rows, count in zip(strata_N, counts, strict=True)]


def accumulation(batch_size: int, micro_batch: int | None, world_size: int) -> int:
    """Micro-batches that one process contributes to an optimiser step.

    Args:
        micro_batch: rows in a micro-batch; None gives each process its whole share at once.

    Raises:
        ConfigError: the step cannot be shared out evenly.
    """
    if batch_size % world_size:
        raise ConfigError(f"optim.batch_size={batch_size} is not a multiple of the {world_size} processes; change it")
    share = batch_size // world_size
    if micro_batch is None:
        return 1
    if share % micro_batch:
        raise ConfigError(
            f"optim.micro_batch={micro_batch} does not divide the {share} rollouts a process gets of "
            f"optim.batch_size={batch_size}; choose a divisor"
        )
    return share // micro_batch


def split_step(row_N: np.ndarray, rank: int, world_size: int, micro_batches: int) -> list[np.ndarray]:
    """The micro-batches of one process; neighbours in length go to different processes, so that none waits long."""
    return np.split(row_N, world_size * micro_batches)[rank::world_size]


def held_out_batches(prompt_index_N: np.ndarray, rank: int, world_size: int, rows: int) -> list[np.ndarray | None]:
    """Whole prompts, each on one process, in batches of about ``rows`` rows; None fills up so that all have as many.

    The i-th prompt belongs to process ``i % world_size``.
    """
    by_prompt = rows_by_prompt(prompt_index_N)
    prompts = max(1, rows // max(map(len, by_prompt)))
    mine = by_prompt[rank::world_size]
    count = -(-len(by_prompt[::world_size]) // prompts)
    chunks = [mine[index * prompts : (index + 1) * prompts] for index in range(count)]
    return [np.concatenate(chunk) if chunk else None for chunk in chunks]


class EncodedPrompts:
    """Token ids ``[L]`` of a task's prompts by position, each encoded when it is first asked for."""

    def __init__(self, base: BaseLM, prompts: Sequence[Prompt]) -> None:
        self._base = base
        self._prompts = prompts
        self._ids: dict[int, Tensor] = {}

    def __getitem__(self, index: int) -> Tensor:
        if index not in self._ids:
            self._ids[index] = self._base.encode_prompts([self._prompts[index]])[0][0]
        return self._ids[index]


def collate(
    rows: Rows,
    row_B: Sequence[int] | np.ndarray,
    encoded: EncodedPrompts,
    pad_id: int,
    weight_total: float,
) -> RolloutBatch:
    """Tensors of some rows: prompts left-padded and stored once, responses right-padded.

    Args:
        weight_total: sum of the weights of the whole optimiser step.
    """
    row_B = np.asarray(row_B)
    prompt_index_P, prompt_of_row_B = np.unique(rows.prompt_index_N[row_B], return_inverse=True)
    prompts = [encoded[int(index)].numpy() for index in prompt_index_P]
    prompt_ids_PS, prompt_mask_PS = _pad(prompts, pad_id, np.int64, left=True)
    pairs = [rows.response(int(row)) for row in row_B]
    response_BT, response_mask_BT = _pad([tokens for tokens, _ in pairs], pad_id, np.int64)
    log_p_BT, _ = _pad([log_p for _, log_p in pairs], 0.0, np.float32)
    return RolloutBatch(
        prompt_ids_PS=prompt_ids_PS,
        prompt_mask_PS=prompt_mask_PS,
        prompt_of_row_B=torch.from_numpy(prompt_of_row_B),
        response_BT=response_BT,
        response_mask_BT=response_mask_BT,
        log_p_BT=log_p_BT,
        score_B=torch.from_numpy(rows.score_N[row_B]),
        weight_B=torch.from_numpy(rows.weight_N[row_B]),
        root_B=torch.from_numpy(rows.root_N[row_B]),
        **_lookahead(rows, row_B),
        recorded=_recorded(rows, row_B, prompt_index_P),
        prompt_index_P=torch.from_numpy(prompt_index_P.astype(np.int64)),
        weight_total=weight_total,
    )


def _lookahead(rows: Rows, row_B: np.ndarray) -> dict[str, Tensor]:
    """The lookahead fields of a batch, if its rows have them."""
    if rows.lookahead_N is None:
        return {}
    targets = [rows.lookahead_N[row] for row in row_B]
    return {
        name: pad_sequence([torch.from_numpy(values[index]) for values in targets], batch_first=True)
        for index, name in enumerate(("candidate_BTK", "candidate_log_target_BTL", "value_BT"))
    }


def _recorded(rows: Rows, row_B: np.ndarray, prompt_index_P: np.ndarray) -> RecordedStates | None:
    """The states of a batch, if they were kept, padded like its tokens."""
    if rows.states is None:
        return None
    prompts = [rows.states.prompt(int(index)) for index in prompt_index_P]
    responses = [rows.states.response(int(row)) for row in row_B]
    return RecordedStates(
        rows.states.depths,
        pad_sequence(prompts, batch_first=True, padding_side="left"),
        pad_sequence(responses, batch_first=True),
    )


def _pad(sequences: Sequence[np.ndarray], fill: float, dtype: type, left: bool = False) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths as one matrix, and the mask of what is real."""
    length_N1 = np.array([len(sequence) for sequence in sequences])[:, None]
    longest = length_N1.max()
    position_L = np.arange(longest)
    # One assignment for all rows; a tensor for each of them takes four times as long.
    real_NL = position_L >= longest - length_N1 if left else position_L < length_N1
    padded_NL = np.full(real_NL.shape, fill, dtype=dtype)
    padded_NL[real_NL] = np.concatenate(sequences)
    return torch.from_numpy(padded_NL), torch.from_numpy(real_NL.astype(np.int64))
