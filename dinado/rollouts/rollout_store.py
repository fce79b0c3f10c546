"""Rollouts on disk, addressed by a fingerprint of all settings that determine them.

    <cache>/rollouts/<fingerprint>/manifest.json
                                   round-000/block-00000.arrow                      texts and log-probabilities
                                   round-000/scores-<fingerprint>/block-00000.arrow an oracle's scores of the texts
                                   round-000/lookahead-<fingerprint>/...            and of their prefixes
                                   round-000/density-<source>/...                   densities under other sources
                                   round-000/likeliest-<K>/...                      the base's K likeliest next tokens

Sampling is by far the most expensive part, so the texts do not depend on the oracle: another one scores the same texts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dinado.batch import RolloutBatch
from dinado.errors import StoreError
from dinado.rollouts.continuations import Likeliest, Lookahead
from dinado.rollouts.ragged import Ragged
from dinado.rollouts.rollout_table import LIKELIEST_SCHEMA, LOOKAHEAD_SCHEMA, SCORE_SCHEMA, TEXT_SCHEMA, Rollouts
from dinado.rollouts.sampler import Samples
from dinado.rollouts.shard import intact_digest, open_shard, write_shard, write_whole
from dinado.rollouts.store_spec import StoreSpec, Truncated, digest, source_name
from dinado.rollouts.waiting import LIMIT_SECONDS, wait_for_blocks

if TYPE_CHECKING:
    from dinado.bases.causal import BaseLM

log = logging.getLogger(__name__)

_TEXTS_KEY = b"texts_sha256"


class RolloutStore:
    """The rollouts that a spec describes, and one oracle's scores.

    Args:
        cache: folder that holds ``rollouts/``.
        spec: the settings that determine the sampled texts.
        oracle_fingerprint: fingerprint of the oracle that judges.
        truncated: treatment of responses cut off by the budget.
        round: number of the sampling round; each round has its own random streams.
        candidates: number of next tokens to judge at every position (dinado/rollouts/continuations.py); 0 for none.

    Raises:
        StoreError: the folder was made from other settings, or its manifest cannot be read.
    """

    def __init__(
        self,
        cache: Path | str,
        spec: StoreSpec,
        oracle_fingerprint: str,
        truncated: Truncated = "fail",
        round: int = 0,
        candidates: int = 0,
    ) -> None:
        self.spec = spec
        self.truncated = truncated
        self.round = round
        self.candidates = candidates
        self.folder = Path(cache) / "rollouts" / spec.fingerprint
        self.source = source_name(spec)
        self.texts_folder = self.folder / f"round-{round:03d}"
        judged = spec.scores_fingerprint(oracle_fingerprint, truncated)
        self._scores = self.texts_folder / f"scores-{judged}"
        self._lookahead = self.texts_folder / f"lookahead-{digest([judged, candidates])}"
        self._check_manifest()

    def missing_blocks(self) -> list[int]:
        """List the blocks of which a file is missing or damaged; damage is logged."""
        missing = [block for block in range(self.spec.num_blocks) if not self.has_block(block)]
        paths = (self._text_path, self._score_path, self._lookahead_path)
        for path in (path(block) for block in missing for path in paths):
            if path.exists() and intact_digest(path) is None:
                log.warning("%s is damaged and will not be read; its block has to be made again", path)
        return missing

    def is_complete(self) -> bool:
        """Tell whether all blocks are complete, so that :meth:`read` can return them."""
        return all(self.has_block(block) for block in range(self.spec.num_blocks))

    def wait(self, poll_seconds: float = 0.1, limit_seconds: float = LIMIT_SECONDS) -> None:
        """Wait until the other processes have written their blocks.

        Raises:
            StoreError: nothing was written for ``limit_seconds``.
        """
        wait_for_blocks(self.spec.num_blocks, self.has_block, self._scores, poll_seconds, limit_seconds)

    def has_texts(self, block: int) -> bool:
        """Tell whether a block has been sampled."""
        return self.texts_digest(block) is not None

    def texts_digest(self, block: int) -> str | None:
        """Return the SHA-256 of a block's texts, None if they are missing; files about the texts are tied to it."""
        return intact_digest(self._text_path(block))

    def has_block(self, block: int) -> bool:
        """Tell whether a block is complete."""
        return self.has_scores(block) and (not self.candidates or self.has_lookahead(block))

    def has_scores(self, block: int) -> bool:
        """Tell whether a block has been sampled, and these texts been judged."""
        return self._is_about_texts(self._score_path(block), block)

    def has_lookahead(self, block: int) -> bool:
        """Tell whether a block has been sampled, and the prefixes of these texts been judged."""
        return self._is_about_texts(self._lookahead_path(block), block)

    def texts_table(self, block: int, samples: Samples, texts: Sequence[str]) -> pa.Table:
        """Return the samples for the prompts of a block as rows of ``TEXT_SCHEMA``."""
        positions = self.spec.block(block)
        sample = [self.spec.first + k for position in positions for k in range(self.spec.count(position))]
        return pa.table(
            {
                "prompt_id": [self.spec.prompts[positions[p]].id for p in samples.prompt_of],
                "prompt_index": [positions[p] for p in samples.prompt_of],
                "sample": sample,
                "round": [self.round] * len(texts),
                "tokens": samples.tokens,
                "log_p": samples.log_p,
                "log_s": samples.log_s,
                "finished": samples.finished,
                "text": list(texts),
            },
            schema=TEXT_SCHEMA.with_metadata(samples.drawn_by or None),
        )

    def drawn_by(self) -> list[dict[bytes, bytes] | None]:
        """Return what the blocks record about a server that drew them; all of them have to be stored."""
        return [self.read_texts(block).schema.metadata for block in range(self.spec.num_blocks)]

    def write_texts(self, block: int, table: pa.Table) -> None:
        """Store the rows of :meth:`texts_table`, unless another run has stored them first."""
        if not self.has_texts(block):
            self._write_manifest()
            write_shard(self._text_path(block), table)

    def read_texts(self, block: int) -> pa.Table:
        """Return the rows of ``TEXT_SCHEMA``; the block has to be stored."""
        return open_shard(self._text_path(block))

    def text_batch(self, base: BaseLM, block: int) -> RolloutBatch:
        """Return the texts of a block as a batch on the base's device, without verdicts."""
        table, positions = self.read_texts(block), self.spec.block(block)
        ids_PS, mask_PS = base.encode_prompts([self.spec.prompts[position] for position in positions])
        prompt_of = [position - positions[0] for position in table["prompt_index"].to_pylist()]
        tokens = table["tokens"].to_pylist()
        return RolloutBatch.unjudged(ids_PS.to(base.device), mask_PS.to(base.device), prompt_of, tokens)

    def write_scores(self, block: int, score_N: np.ndarray) -> None:
        """Store the oracle's scores of the rows of :meth:`read_texts`."""
        texts = self.read_texts(block)
        columns = {"prompt_id": texts["prompt_id"], "sample": texts["sample"], "score": pa.array(score_N, pa.float32())}
        self._write_about_texts(self._score_path(block), block, pa.table(columns, schema=SCORE_SCHEMA))

    def write_lookahead(self, block: int, rows: Sequence[Lookahead]) -> None:
        """Store the lookahead of each row of :meth:`read_texts`."""
        columns = {name: [np.ravel(getattr(row, name)) for row in rows] for name in Lookahead._fields}
        self._write_about_texts(self._lookahead_path(block), block, pa.table(columns, schema=LOOKAHEAD_SCHEMA))

    def write_likeliest(self, block: int, rows: Sequence[Likeliest], texts_digest: str) -> None:
        """Store the base's likeliest tokens along the rows of a block.

        Args:
            texts_digest: SHA-256 of the shard of texts that they belong to, which may still have to be written.
        """
        columns = {name: [np.ravel(getattr(row, name)) for row in rows] for name in Likeliest._fields}
        table = pa.table(columns, schema=LIKELIEST_SCHEMA.with_metadata({_TEXTS_KEY: texts_digest}))
        write_shard(self._likeliest_path(block), table)

    def likeliest(self, block: int) -> list[Likeliest] | None:
        """Return what :meth:`write_likeliest` stored about these texts, None if that is missing or damaged."""
        if not self._is_about_texts(self._likeliest_path(block), block):
            return None
        table, lengths = open_shard(self._likeliest_path(block)), Ragged(self.read_texts(block)["tokens"]).length_N
        columns = [Ragged(table[name]) for name in Likeliest._fields]
        return [
            Likeliest(*(column[row].reshape(length, -1) for column in columns)) for row, length in enumerate(lengths)
        ]

    def has_density(self, source: str, block: int) -> bool:
        """Tell whether the log-probabilities of a block's texts under another source are stored."""
        return self._is_about_texts(self._density_path(source, block), block)

    def write_density(self, source: str, block: int, log_s_N: np.ndarray) -> None:
        """Store the log-probability of each whole response of :meth:`read_texts` under a source."""
        self._write_about_texts(self._density_path(source, block), block, pa.table({"log_s": log_s_N}))

    def density(self, source: str) -> np.ndarray:
        """Return what :meth:`write_density` stored, all blocks in order, float64 ``[N]``, truncated rows included."""
        tables = [open_shard(self._density_path(source, block)) for block in range(self.spec.num_blocks)]
        return pa.concat_tables(tables)["log_s"].to_numpy()

    def read(self) -> Rollouts:
        """Return all rows, without truncated ones when these are dropped; see :meth:`table`."""
        return Rollouts(self.table(), self.spec.prompts, keep_truncated=self.truncated != "drop")

    def table(self) -> pa.Table:
        """Return all rows with their scores and, with candidates, their lookahead.

        Raises:
            StoreError: blocks are missing or damaged.
        """
        if missing := self.missing_blocks():
            raise StoreError(
                f"{self.texts_folder} lacks {len(missing)} of {self.spec.num_blocks} blocks (first: {missing[0]}); "
                "start the run again to sample them"
            )
        return pa.concat_tables([self._read_block(block) for block in range(self.spec.num_blocks)])

    def _read_block(self, block: int) -> pa.Table:
        table = self.read_texts(block).append_column("score", open_shard(self._score_path(block))["score"])
        if self.candidates:
            lookahead = open_shard(self._lookahead_path(block))
            for name in lookahead.column_names:
                table = table.append_column(name, lookahead[name])
        return table

    def _write_about_texts(self, path: Path, block: int, table: pa.Table) -> None:
        """Write a shard that records the SHA-256 of the texts that it is about."""
        sha256 = self.texts_digest(block)
        assert sha256 is not None, "judged a block that is not there"
        write_shard(path, table.replace_schema_metadata({_TEXTS_KEY: sha256}))

    def _is_about_texts(self, path: Path, block: int) -> bool:
        texts = self.texts_digest(block)
        if texts is None or intact_digest(path) is None:
            return False
        return open_shard(path).schema.metadata == {_TEXTS_KEY: texts.encode()}

    def _text_path(self, block: int) -> Path:
        return self.texts_folder / f"block-{block:05d}.arrow"

    def _score_path(self, block: int) -> Path:
        return self._scores / f"block-{block:05d}.arrow"

    def _lookahead_path(self, block: int) -> Path:
        return self._lookahead / f"block-{block:05d}.arrow"

    def _likeliest_path(self, block: int) -> Path:
        return self.texts_folder / f"likeliest-{self.candidates}" / f"block-{block:05d}.arrow"

    def _density_path(self, source: str, block: int) -> Path:
        return self.texts_folder / f"density-{source}" / f"block-{block:05d}.arrow"

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.json"

    def _check_manifest(self) -> None:
        """Refuse a folder that was filled from other settings, e.g. one that was copied or renamed."""
        try:
            found = json.loads(self._manifest.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._manifest} cannot be read ({error}); remove {self.folder}") from None
        expected = self.spec.manifest()
        differs = [key for key in expected if not isinstance(found, dict) or found.get(key) != expected[key]]
        if differs:
            raise StoreError(f"{self._manifest} has another {differs[0]} than this run; remove {self.folder}")

    def _write_manifest(self) -> None:
        if not self._manifest.exists():
            text = json.dumps(self.spec.manifest(), indent=2, ensure_ascii=False)
            write_whole(self._manifest, text.encode("utf-8"))
