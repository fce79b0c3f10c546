"""Rounds of sampling: rollouts of the current model, and all densities that their importance weights need."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from datamodules.fill_stores import StoreFiller
from datamodules.rollout_datamodule import RolloutDataModule
from dinado.batch import RolloutBatch
from dinado.errors import StoreError
from dinado.rollouts.density import fill_densities, proposal_log_density
from dinado.rollouts.drawn import missing_densities
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.shard import write_whole
from lightning_modules.callbacks.graceful_stop import GracefulStop, interruption
from lightning_modules.callbacks.keep_best import KeepBest
from lightning_modules.log_now import log_now
from lightning_modules.rollout_method import RolloutMethod

log = logging.getLogger(__name__)


class Rounds(Callback):
    """A callback that draws the rounds of a run from its method, between two optimiser steps.

    A round is drawn after the checkpoint of the last step before it, so that a run that is stopped during sampling
    resumes there. This callback must come after the one that saves checkpoints.

    Args:
        method: the trained method; drawing a round leaves its weights, mode and gradients unchanged.
        data: the data module that gets the round.
        filler: samples, judges and stores rollouts.
        best: keeps the nearest model so far, which is then the one that is sampled; None samples the present one.
    """

    def __init__(
        self, method: RolloutMethod, data: RolloutDataModule, filler: StoreFiller, best: KeepBest | None = None
    ) -> None:
        self._method = method
        self._data = data
        self._filler = filler
        self._best = best

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the rounds that a resumed run has drawn; draw those that a new run needs before its first step."""
        for index, model in enumerate(self._data.restored_models, 1):
            self.draw(index, model)
        self._data.check_restored()
        if trainer.ckpt_path is None:
            self._reach(0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the rounds due at the step where a resumed run stopped, now that its records are truncated there."""
        self._reach(self._data.steps_done)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Draw the rounds due before the next step."""
        if not (trainer.fit_loop._should_accumulate() or trainer.should_stop):
            self._reach(trainer.global_step)

    def _reach(self, step: int) -> None:
        while step < self._data.num_steps and self._data.begins_round(step):
            with self._nearest():
                self.draw(len(self._data.models) + 1)

    @contextmanager
    def _nearest(self) -> Iterator[None]:
        """Put the nearest model so far in place of the present one, where one is kept, and restore it at the end."""
        method, best = self._method, self._best
        if best is None or method.trainer.global_step == 0 or self._data.exploration() is not None:
            yield
            return
        best.consider_now(method.trainer, method)
        if best.step in (None, method.trainer.global_step):
            yield
            return
        log.info("step %s came nearer to q* than step %d; it is sampled", best.step, method.trainer.global_step)
        with _other_weights(method, best.weights):
            yield

    def draw(self, index: int, model: str | None = None) -> None:
        """Sample and judge a round, compute log-probabilities of all texts under all sources, add it to the data.

        Parts of the round that are stored already are not computed again.

        Args:
            index: number of the round.
            model: the source from which a resumed run drew this round; None is the current model, or the base at a
                higher temperature as long as nothing has been accepted.

        Raises:
            KeyboardInterrupt: on Ctrl-C or a scheduler's warning; finished blocks stay.
            StoreError: the weights of an earlier model are needed and missing.
        """
        method, data = self._method, self._data
        trainer, training = method.trainer, method.training
        place = (trainer.global_rank, trainer.world_size)
        method.eval()
        now = weights_fingerprint(method)
        drawn_from = model or data.exploration() or now
        stores = data.next_round(drawn_from)
        if place[0] == 0 and not all(store.is_complete() for store in stores):
            of = "the model" if data.exploration() is None else f"the base at {drawn_from}, as nothing was accepted yet"
            log.info("round %d of %d: sampling from %s", index + 1, data.config.rollouts.rounds, of)
        self._fill(stores, now, place)
        trainer.strategy.barrier("densities")
        data.add_round(drawn_from)
        method.train(training)
        # A round drawn before the checkpoint has been logged already.
        if model is None:
            log_now(trainer.loggers, {**data.summary, "rollouts/round": float(index)}, trainer.global_step)

    @torch.no_grad()
    def _fill(self, stores: list[RolloutStore], now: str, place: tuple[int, int]) -> None:
        """Compute the missing parts of a round: texts, verdicts, states, and the densities of it and earlier rounds.

        Args:
            now: fingerprint of the method's weights.
            place: rank and number of processes.
        """
        method, data = self._method, self._data
        for store in stores:
            if store.spec.model == now and place[0] == 0:
                save_model(store, method)
            controlled = method.controlled(alpha=1.0) if store.spec.model is not None else None
            with _weights_of(method, store, unless=store.is_complete()):
                self._filler.fill(store, controlled=controlled, on_progress=lambda _: self._check_stop())
            self._filler.fill_states(store)
        everything = [*data.stores, *stores]
        for store, source in missing_densities(everything):
            drawn_from = next(other for other in everything if other.source == source)
            with _weights_of(method, drawn_from):
                log_density = _log_density(method, drawn_from)
                fill_densities(method.base, store, source, log_density, rank=place[0], world_size=place[1])
            self._check_stop()

    def _check_stop(self) -> None:
        for stop in self._method.trainer.callbacks:
            if isinstance(stop, GracefulStop) and stop.received:
                raise interruption(stop.received)


def weights_fingerprint(method: RolloutMethod) -> str:
    """Compute a fingerprint that changes with any bit of the trained weights, or with the base."""
    digest = hashlib.sha256(method.base.fingerprint.encode())
    for name, value in sorted(method.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_model(store: RolloutStore, method: RolloutMethod) -> None:
    """Save the trained weights beside the rollouts drawn from them, because later rounds need their densities."""
    weights = {name: value.detach().cpu().contiguous() for name, value in method.state_dict().items()}
    if not _weights_file(store).is_file():
        write_whole(_weights_file(store), save(weights))


def _load_model(store: RolloutStore) -> dict[str, Tensor]:
    try:
        return load(_weights_file(store).read_bytes())
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{_weights_file(store)} cannot be read ({error}); start the run again") from None


def _weights_file(store: RolloutStore) -> Path:
    return store.folder / "model.safetensors"


@contextmanager
def _weights_of(method: RolloutMethod, store: RolloutStore, unless: bool = False) -> Iterator[None]:
    """Load the weights that a store was drawn from, if they are not the current ones, and restore these at the end."""
    if unless or store.spec.model in (None, weights_fingerprint(method)):
        yield
        return
    with _other_weights(method, _load_model(store)):
        yield


@contextmanager
def _other_weights(method: RolloutMethod, weights: dict[str, Tensor]) -> Iterator[None]:
    """Load trained weights, and restore the present ones at the end."""
    now = {name: value.clone() for name, value in method.state_dict().items()}
    method.load_state_dict(weights, strict=False)
    try:
        yield
    finally:
        method.load_state_dict(now, strict=False)


def _log_density(method: RolloutMethod, store: RolloutStore) -> Callable[[RolloutBatch], Tensor]:
    """Return the log-density `[B]` of whole responses under a store's source, whose weights must be loaded."""

    def of_base(batch: RolloutBatch) -> Tensor:
        with method.scores.off():
            return proposal_log_density(method.base, store.spec.proposal, batch)

    def of_model(batch: RolloutBatch) -> Tensor:
        return (method.scores(batch).statistics.log_q * batch.response_mask_BT).sum(1)

    return of_base if store.spec.model is None else of_model
