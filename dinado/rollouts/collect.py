"""Collection of rollouts: sample and judge the missing blocks of a rollout store, one by one.

Every response has its own random stream, so the content depends neither on the number of processes, nor on the size
of a block, nor on where an earlier attempt stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dinado.bases.decoder import Decoder
from dinado.batch import RolloutBatch
from dinado.rollouts.beam import beam_search
from dinado.rollouts.continuations import likeliest, look_ahead
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.rollout_table import store_summary
from dinado.rollouts.sampler import Samples, sample, uniforms
from dinado.rollouts.served_texts import ServedTexts
from dinado.rollouts.shard import shard_digest
from dinado.rollouts.state_store import StateStore

if TYPE_CHECKING:
    from dinado.bases.causal import BaseLM
    from dinado.control.controlled_lm import ControlledLM
    from dinado.oracles import Oracle

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """The progress of one process with its share of a store, in this attempt only.

    Attributes:
        done, total: number of rollouts.
        tokens: number of response tokens sampled.
        seconds: time since the start.
    """

    total: int
    done: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def rollouts_per_s(self) -> float:
        """Rollouts sampled and judged per second."""
        return self.done / max(self.seconds, 1e-9)

    @property
    def tokens_per_s(self) -> float:
        """Response tokens per second."""
        return self.tokens / max(self.seconds, 1e-9)


def collect(
    base: BaseLM,
    oracle: Oracle,
    store: RolloutStore,
    *,
    rank: int = 0,
    world_size: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    states: StateStore | None = None,
    controlled: ControlledLM | None = None,
    served: ServedTexts | None = None,
) -> Progress:
    """Make the missing blocks of ``store`` that belong to this process.

    Process ``rank`` of ``world_size`` owns the blocks ``rank, rank + world_size, ...`` and does not wait for the
    others (:meth:`RolloutStore.wait` does). A complete store is summarised in one log line. Sampled blocks are kept if
    anything stops the collection early, an oracle that raises included.

    Args:
        states: store for the base's hidden states of newly sampled texts; existing texts get theirs from
            :func:`~dinado.rollouts.state_store.record_states`.
        controlled: the model to sample in place of the base, that of ``store.spec.model``.
        served: the server that samples in place of the base, that of ``store.spec.engine``.

    Raises:
        EngineError: the server failed; blocks that it has finished are stored.
        OracleError: the oracle failed.
        StoreError: a file cannot be written.
    """
    missing = [block for block in store.missing_blocks() if block % world_size == rank]
    progress = Progress(total=store.spec.num_rollouts(missing))
    start = time.monotonic()
    with base.adapters(on=False), base.in_step(), ExitStack() as opened:
        answers: Iterator[Samples] = iter(())
        if store.spec.engine is not None and served is not None:
            unsampled = [block for block in missing if not store.has_texts(block)]
            answers = drawing = served.blocks(base, store.spec, unsampled, store.round)
            opened.callback(drawing.close)
        for block in missing:
            if not store.has_texts(block):
                drawn = next(answers, None)
                progress.tokens += _sample_block(base, store, block, states, controlled, drawn)
            if not store.has_scores(block):
                _score_block(oracle, store, block)
            if store.candidates and not store.has_lookahead(block):
                _look_ahead(base, oracle, store, block)
            progress.done += store.spec.num_rollouts([block])
            progress.seconds = time.monotonic() - start
            if on_progress is not None:
                on_progress(progress)
    if store.is_complete():
        _report(store)
    return progress


def _sample_block(
    base: BaseLM,
    store: RolloutStore,
    block: int,
    states: StateStore | None,
    controlled: ControlledLM | None,
    drawn: Samples | None,
) -> int:
    """Sample the texts of a block, unless a server has drawn them, and store them; return the number of tokens."""
    spec = store.spec
    counts = [spec.count(position) for position in spec.block(block)]
    ids_PS, mask_PS = base.encode_prompts([spec.prompts[position] for position in spec.block(block)])
    ids_PS, mask_PS = ids_PS.to(base.device), mask_PS.to(base.device)
    stream: tuple[int | str, ...] = (spec.seed, "rollouts", spec.split, store.round, *_part(store))
    uniform_NT = uniforms(spec.streams(block), counts, spec.max_new_tokens, *stream, first=spec.first)
    if drawn is not None:
        samples = drawn
    elif spec.beam:
        samples = beam_search(base, ids_PS, mask_PS, spec.per_prompt, spec.max_new_tokens)
    elif controlled is None:
        decoder = Decoder(base.model, base.temperature, () if states is None else states.depths)
        samples = sample(
            decoder, ids_PS, mask_PS, base.eos_ids, uniform_NT, spec.proposal, counts, candidates=store.candidates
        )
    else:
        with base.adapters(on=True):
            samples = sample(Decoder(controlled), ids_PS, mask_PS, base.eos_ids, uniform_NT, spec.proposal, counts)
        batch = RolloutBatch.unjudged(ids_PS, mask_PS, samples.prompt_of, samples.tokens)
        log_p = base.log_probs(batch).tolist()
        samples.log_p = [row[: len(tokens)] for row, tokens in zip(log_p, samples.tokens, strict=True)]
    table = store.texts_table(block, samples, [base.decode(tokens) for tokens in samples.tokens])
    # What belongs to the texts is written before them: a run killed in between makes all again, identical to the bit.
    if states is not None and samples.states is not None:
        states.write(block, samples.states, shard_digest(table))
    if samples.likeliest is not None:
        store.write_likeliest(block, samples.likeliest, shard_digest(table))
    store.write_texts(block, table)
    return sum(map(len, samples.tokens))


def _part(store: RolloutStore) -> tuple[str, ...]:
    """Return names that keep the streams of a model or of a later round's flattened base apart from the base's streams.

    The model's fingerprint is not among them: a model that differs by rounding then draws the same texts.
    """
    if store.spec.model is not None:
        return ("model",)
    return ("flattened",) if store.round and not store.spec.proposal.is_base else ()


def _score_block(oracle: Oracle, store: RolloutStore, block: int) -> None:
    """Judge the stored texts of a block; truncated texts score 0 without the oracle unless they are to be judged."""
    table = store.read_texts(block)
    asked_N = table["finished"].to_numpy() | (store.truncated == "score")
    score_N = np.zeros(len(asked_N), dtype=np.float32)
    if asked_N.any():
        rows = asked_N.nonzero()[0]
        positions, texts = table["prompt_index"].to_pylist(), table["text"].to_pylist()
        scores = oracle([store.spec.prompts[positions[row]] for row in rows], [texts[row] for row in rows])
        score_N[rows] = scores.cpu().numpy()
    store.write_scores(block, score_N)


def _look_ahead(base: BaseLM, oracle: Oracle, store: RolloutStore, block: int) -> None:
    """Judge the likely next tokens at every position of a block's texts; the base reads texts sampled without them."""
    spec, table = store.spec, store.read_texts(block)
    found = store.likeliest(block) or likeliest(base, store.text_batch(base, block), store.candidates)
    rows = [
        look_ahead(
            oracle,
            spec.prompts[position],
            response,
            *candidates,
            base.decode,
            eos_ids=base.eos_ids,
            max_new_tokens=spec.max_new_tokens,
            judge_truncated=store.truncated == "score",
        )
        for position, response, candidates in zip(
            table["prompt_index"].to_pylist(),
            table["tokens"].to_pylist(),
            found,
            strict=True,
        )
    ]
    store.write_lookahead(block, rows)


def _report(store: RolloutStore) -> None:
    rollouts = store.read()
    numbers = store_summary(rollouts)
    log.info(
        "%s rollouts: %d for %d prompts, %.1f %% accepted, %.1f %% truncated, %.1f %% distinct (%s)",
        store.spec.split,
        len(rollouts),
        len(store.spec.prompts),
        100 * numbers["rollouts/success"],
        100 * numbers["rollouts/truncated"],
        100 * numbers["rollouts/distinct"],
        store.folder,
    )


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar with rates on the terminal; yield an ``on_progress`` that updates it."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Bar(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task(title, total=None, rate="")

        def update(progress: Progress) -> None:
            rate = f"{progress.rollouts_per_s:.1f} rollouts/s, {progress.tokens_per_s:.0f} tokens/s"
            bar.update(task, total=progress.total, completed=progress.done, rate=rate)

        yield update
