"""Collation of rows into batches of padded tensors.

Axes: N rows, P prompts, S prompt tokens, B rows of a batch, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datamodules.training_rows import Rows, rows_by_prompt
from dinado.bases.causal import BaseLM
from dinado.batch import HeldOutVerdicts, RecordedStates, RolloutBatch
from dinado.prompt import Prompt


def held_out_batches(prompt_index_N: np.ndarray, rank: int, world_size: int, rows: int) -> list[np.ndarray | None]:
    """Split held-out rows into the batches of one process: whole prompts, about ``rows`` rows in each batch.

    The i-th prompt belongs to process ``i % world_size``. None stands for a filler batch, so that all processes have
    the same number of batches.
    """
    by_prompt = rows_by_prompt(prompt_index_N)
    prompts = max(1, rows // max(map(len, by_prompt)))
    mine = by_prompt[rank::world_size]
    count = -(-len(by_prompt[::world_size]) // prompts)
    chunks = [mine[index * prompts : (index + 1) * prompts] for index in range(count)]
    return [np.concatenate(chunk) if chunk else None for chunk in chunks]


class EncodedPrompts:
    """Token ids ``[L]`` of a task's prompts by position, each encoded on first access."""

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
    success: float = 1.0,
) -> RolloutBatch:
    """Collate rows into a batch: prompts left-padded and stored once, responses right-padded.

    Args:
        weight_total: sum of the weights of the whole optimiser step.
        success: weighted mean of the scores of all rows that are trained on.
    """
    row_B = np.asarray(row_B)
    prompt_index_P, prompt_of_row_B = np.unique(rows.prompt_index_N[row_B], return_inverse=True)
    prompts = [encoded[int(index)].numpy() for index in prompt_index_P]
    prompt_ids_PS, prompt_mask_PS = _pad(prompts, pad_id, np.int64, left=True)
    pairs = [rows.response(int(row)) for row in row_B]
    response_BT, response_mask_BT = _pad([tokens for tokens, _ in pairs], pad_id, np.int64)
    known = [log_p for _, log_p in pairs if log_p is not None]
    return RolloutBatch(
        prompt_ids_PS=prompt_ids_PS,
        prompt_mask_PS=prompt_mask_PS,
        prompt_of_row_B=torch.from_numpy(prompt_of_row_B),
        response_BT=response_BT,
        response_mask_BT=response_mask_BT,
        log_p_BT=_pad(known, 0.0, np.float32)[0] if len(known) == len(pairs) else None,
        score_B=torch.from_numpy(rows.score_N[row_B]),
        weight_B=torch.from_numpy(rows.weight_N[row_B]),
        root_B=torch.from_numpy(rows.root_N[row_B]),
        **_lookahead(rows, row_B),
        recorded=_recorded(rows, row_B, prompt_index_P),
        prompt_index_P=torch.from_numpy(prompt_index_P.astype(np.int64)),
        held_out=_held_out(rows, row_B),
        success=success,
        weight_total=weight_total,
    )


def _lookahead(rows: Rows, row_B: np.ndarray) -> dict[str, Tensor]:
    """Return the lookahead fields of a batch, padded; empty if its rows have none."""
    if rows.lookahead_N is None:
        return {}
    targets = [rows.lookahead_N[row] for row in row_B]
    return {
        name: pad_sequence([torch.from_numpy(values[index]) for values in targets], batch_first=True)
        for index, name in enumerate(("candidate_BTK", "candidate_log_target_BTL", "value_BT"))
    }


def _held_out(rows: Rows, row_B: np.ndarray) -> HeldOutVerdicts | None:
    """Return the verdicts on held-out rows; None for training rows."""
    if rows.accepted_N is None or rows.draw_N is None:
        return None
    accepted_B, draw_B = torch.from_numpy(rows.accepted_N[row_B]), torch.from_numpy(rows.draw_N[row_B])
    return HeldOutVerdicts(accepted_B, draw_B, rows.most)


def _recorded(rows: Rows, row_B: np.ndarray, prompt_index_P: np.ndarray) -> RecordedStates | None:
    """Return the recorded states of a batch, padded like its tokens; None if there are none."""
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
    """Pad sequences of different lengths to one matrix; return it and the mask of real positions."""
    length_N1 = np.array([len(sequence) for sequence in sequences])[:, None]
    longest = length_N1.max()
    position_L = np.arange(longest)
    # One assignment for all rows: a tensor per row takes four times as long.
    real_NL = position_L >= longest - length_N1 if left else position_L < length_N1
    padded_NL = np.full(real_NL.shape, fill, dtype=dtype)
    padded_NL[real_NL] = np.concatenate(sequences)
    return torch.from_numpy(padded_NL), torch.from_numpy(real_NL.astype(np.int64))
