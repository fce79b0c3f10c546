"""Hidden states of the frozen base along stored rollouts, so that training need not run it again.

    <store>/round-000/states-<fingerprint>/prompts-00000.arrow   one row per prompt
                                           block-00000.arrow     one row per rollout, without its last token

Only positions that predict a token and depths that a method reads are stored, and every prompt is stored once.
Axes: S prompt tokens, R response tokens but the last, J depths, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from dinado.errors import StoreError
from dinado.rollouts.ragged import Ragged
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.shard import intact_digest, open_shard, write_shard
from dinado.rollouts.store_spec import digest
from dinado.rollouts.trace import TracedStates
from dinado.rollouts.waiting import LIMIT_SECONDS, wait_for_blocks

if TYPE_CHECKING:
    from dinado.bases.causal import BaseLM

StateType = Literal["float32", "bfloat16", "float16"]
# NumPy has no bfloat16; its bits are stored as integers.
_ARROW = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}
_TEXTS_KEY = b"texts_sha256"


class StateStore:
    """Hidden states for the texts of a rollout store, block by block, written once and mapped into memory.

    Args:
        store: the rollouts; states can be read only once their texts are stored.
        depths: layers whose states are stored, in ascending order; 0 is the token embeddings.
        width: D.
        dtype: the type in which they are stored; float32 trains exactly as without a store.
    """

    def __init__(self, store: RolloutStore, depths: Sequence[int], width: int, dtype: StateType = "float32") -> None:
        self.store = store
        self.depths = tuple(depths)
        self.width = width
        self.dtype: StateType = dtype
        self.folder = store.texts_folder / f"states-{digest([self.depths, dtype])}"

    def num_bytes(self, base: BaseLM) -> int:
        """Return the size on disk; the texts have to be stored."""
        tables = [self.store.read_texts(block) for block in range(self.store.spec.num_blocks)]
        lengths = sum(int(pc.list_value_length(table["tokens"]).to_numpy().sum()) for table in tables)
        return self._bytes(base, lengths - sum(map(len, tables)))

    def most_bytes(self, base: BaseLM) -> int:
        """Return the size on disk if every response used its whole budget."""
        spec = self.store.spec
        return self._bytes(base, spec.num_rollouts() * (spec.max_new_tokens - 1))

    def _bytes(self, base: BaseLM, response_positions: int) -> int:
        _, mask_PS = base.encode_prompts(self.store.spec.prompts)
        positions = int(mask_PS.sum()) + response_positions
        return positions * len(self.depths) * self.width * getattr(torch, self.dtype).itemsize

    def missing_blocks(self) -> list[int]:
        """List the blocks whose states are missing, damaged, or about other texts."""
        return [block for block in range(self.store.spec.num_blocks) if not self.has_block(block)]

    def has_block(self, block: int) -> bool:
        """Tell whether the states of a block can be read."""
        texts = self.store.texts_digest(block)
        paths = (self._path("prompts", block), self._path("block", block))
        if texts is None or any(intact_digest(path) is None for path in paths):
            return False
        return all(open_shard(path).schema.metadata == {_TEXTS_KEY: texts.encode()} for path in paths)

    def write(self, block: int, states: TracedStates, texts_digest: str) -> None:
        """Store the states of a block.

        Args:
            texts_digest: SHA-256 of the shard of texts that they belong to.

        Raises:
            StoreError: a state is too large for the type, or a file cannot be written.
        """
        for kind, column in (("prompts", states.prompts), ("block", states.responses)):
            table = pa.table({"states": self._column(column)})
            write_shard(self._path(kind, block), table.replace_schema_metadata({_TEXTS_KEY: texts_digest}))

    def read(self) -> StateTable:
        """Return all states, mapped into memory.

        Raises:
            StoreError: blocks are missing.
        """
        if missing := self.missing_blocks():
            raise StoreError(f"{self.folder} lacks block {missing[0]}; start the run again to record it")
        prompts, responses = (self._ragged(kind) for kind in ("prompts", "block"))
        return StateTable(prompts, responses, self.depths, self.width, self.dtype)

    def wait(self, poll_seconds: float = 0.1, limit_seconds: float = LIMIT_SECONDS) -> None:
        """Wait until the other processes have written their blocks.

        Raises:
            StoreError: nothing was written for ``limit_seconds``.
        """
        wait_for_blocks(self.store.spec.num_blocks, self.has_block, self.folder, poll_seconds, limit_seconds)

    def _ragged(self, kind: str) -> Ragged:
        tables = [open_shard(self._path(kind, block)) for block in range(self.store.spec.num_blocks)]
        return Ragged(pa.chunked_array([chunk for table in tables for chunk in table["states"].chunks]))

    def _column(self, states: Sequence[Tensor]) -> pa.Array:
        values = torch.cat([state.reshape(-1) for state in states]).cpu().to(getattr(torch, self.dtype))
        if not torch.isfinite(values).all():
            raise StoreError(
                f"the base has states that {self.dtype} cannot hold; set data.states=bfloat16, float32 or off"
            )
        numbers = (values.view(torch.uint16) if self.dtype == "bfloat16" else values).numpy()
        offsets = np.cumsum([0] + [state.numel() for state in states])
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(numbers, _ARROW[self.dtype]))

    def _path(self, kind: str, block: int) -> Path:
        return self.folder / f"{kind}-{block:05d}.arrow"


class StateTable:
    """Hidden states by prompt and by stored row.

    Attributes:
        depths: layers on the J axis.
    """

    def __init__(
        self, prompts: Ragged, responses: Ragged, depths: tuple[int, ...], width: int, dtype: StateType
    ) -> None:
        self._prompts = prompts
        self._responses = responses
        self.depths = depths
        self._width = width
        self._dtype = getattr(torch, dtype)

    def __len__(self) -> int:
        """Return the number of stored rows."""
        return len(self._responses)

    def prompt(self, index: int) -> Tensor:
        """Return the states of a prompt, ``[S, J, D]`` in the stored type."""
        return self._tensor(self._prompts[index])

    def response(self, row: int) -> Tensor:
        """Return the states of a response, ``[R, J, D]`` in the stored type."""
        return self._tensor(self._responses[row])

    def _tensor(self, values: np.ndarray) -> Tensor:
        # Copied, because torch does not support read-only memory; the batch copies again into its padded block anyway.
        found = torch.from_numpy(values.copy())
        found = found.view(torch.bfloat16) if self._dtype == torch.bfloat16 else found
        return found.view(-1, len(self.depths), self._width)


@torch.no_grad()
def record_states(base: BaseLM, states: StateStore, block: int) -> None:
    """Store the states of a block by one pass of the base over its prompts and texts.

    Raises:
        StoreError: see :meth:`StateStore.write`.
    """
    batch = states.store.text_batch(base, block)
    found = base.states(batch, [depth / base.num_layers for depth in states.depths])
    at_prompt, at_response = (torch.stack(taps, 2) for taps in (found.prompt_taps, found.response_taps))
    prompts = zip(at_prompt, found.prompt_mask_PS, strict=True)
    responses = zip(at_response, batch.response_mask_BT[:, 1:], strict=True)
    traced = TracedStates(
        [at_SJD[mask_S.bool()] for at_SJD, mask_S in prompts],
        [at_RJD[mask_R.bool()] for at_RJD, mask_R in responses],
    )
    texts = states.store.texts_digest(block)
    assert texts is not None, "states of texts that are not there"
    states.write(block, traced, texts)
