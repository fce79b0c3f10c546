"""A training run from settings to the final table, a dry run, and the evaluation of a run or of a base."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console

from datamodules.batch_plan import micro_batches
from datamodules.engine_choice import served_texts
from datamodules.fill_stores import StoreFiller
from datamodules.held_out import HeldOut
from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.run_stores import RunStores
from datamodules.state_choice import StateChoice
from datamodules.tasks import build_task
from dinado.bases.causal import BaseLM
from dinado.bases.sharding import bytes_held, shard_base
from dinado.errors import CheckpointError
from dinado.evaluation.result_rows import Row
from dinado.ranks import is_writer
from engine.agreed import agree
from engine.before_sampling import check_before_sampling
from engine.checkpoints import LAST, read_checkpoint, write_best
from engine.console import run_console
from engine.devices import backend_of, device_of
from engine.evaluation import Report, distance_now, evaluate_method
from engine.loggers.build_loggers import build_loggers, check_loggers, closing, finish, page_of, rewind
from engine.record import OpenRecord
from engine.restoring import build_base, build_world, check_and_load
from engine.results import final_metrics, last_numbers, show_results
from engine.rounds import Rounds
from engine.trainer import build_trainer, connect, count_parameters
from lightning_modules.build_method import build_method, check_rows
from lightning_modules.callbacks.graceful_stop import GracefulStop, interruptible, interruption
from lightning_modules.callbacks.keep_best import KeepBest
from lightning_modules.callbacks.last_checkpoint import LastCheckpoint
from lightning_modules.callbacks.norm_fit import NormFit
from lightning_modules.callbacks.pending_validation import PendingValidation
from lightning_modules.log_now import log_now
from lightning_modules.rollout_method import RolloutMethod, check_base
from workbench.launching import exit_code_of
from workbench.run_folder import RunFolder
from workbench.settings.config import Config
from workbench.settings.derived import round_starts

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The final metrics and the exit code of a run."""

    metrics: Row = field(default_factory=dict)
    exit_code: int = 0


@dataclass
class Saved:
    """The checkpoint from which a run resumes.

    Attributes:
        path: checkpoint; None where the run has none yet, or is new.
        state: its content.
        resumed: whether the run is resumed at all.
    """

    path: Any
    state: dict[str, Any] | None
    resumed: bool

    @property
    def step(self) -> int | None:
        """Number of completed optimiser steps; None for a new run."""
        if not self.resumed:
            return None
        return 0 if self.state is None else int(self.state["global_step"])


@interruptible()
def train(
    config: Config, folder: RunFolder, *, resume: bool, quiet: bool, on_start: Callable[[], None] | None = None
) -> Outcome:
    """Sample rollouts, train, evaluate and report.

    Args:
        resume: continue from the run's last checkpoint, from the start where it has none.
        quiet: write to stderr, because stdout is reserved for ``--json``.
        on_start: called once the settings, and the checkpoint if there is one, have been found to fit.
    """
    console = run_console(quiet)
    # Fail before the sampling instead of after it.
    device = device_of(config.trainer)
    check_loggers(config)
    check_rows(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    folder.make_importable()
    task = build_task(config)
    base = build_base(config, agree(task.oracle, folder))
    check_before_sampling(config, base, task)
    world = build_world(config, base)
    saved = _saved(config, folder, base, resume)
    loggers = build_loggers(config, folder, saved.step)
    with closing(loggers):
        method = _sharded(console, config, base, device) if config.trainer.shard_base else None
        base.model.to(device)
        console.print(f"run {folder.path}: {config.method} on {base.name}, {len(task.train_prompts)} prompts")
        stores, states = RunStores(config, base, task), StateChoice(config, base)
        filler = StoreFiller(base, task.oracle, states, progress=config.trainer.progress, served=served_texts(config))
        rollouts_per_s = filler.fill_all(stores.needed())
        filler.fill_held_out(HeldOut(config, base, task))
        for store in stores.first():
            filler.fill_states(store)
        data = RolloutDataModule(config, base, task)
        data.setup("fit")
        # Built after the sampling where possible: disabled adapters would slow the base down.
        method = method or build_method(config, base)
        trained, total = count_parameters(method)
        console.print(f"training {trained:,} of {total:,} parameters for {config.optim.steps} steps")
        if saved.state is not None:
            check_and_load(method, saved.state)
        else:
            rewind(loggers, folder, 0)  # drop records of an earlier start that saved no checkpoint
            log_now(loggers, {**data.summary, "perf/rollouts_per_s": rollouts_per_s}, 0)
        stop = GracefulStop()
        every = config.trainer.val_every
        best = KeepBest(every, lambda: distance_now(method, data)) if config.trainer.keep_best else None
        record = OpenRecord(folder, loggers, saved.step if saved.state is not None else None, on_start)
        callbacks = _callbacks(
            config, folder, stop, record, Rounds(method, data, filler, best), best, resumed=saved.state is not None
        )
        accumulation = micro_batches(config.optim, config.trainer.devices * config.trainer.num_nodes)
        trainer = build_trainer(config.trainer, config.optim, folder, accumulation, loggers, callbacks)
        _fit(trainer, method, data, saved, stop)
        if stop.received is not None:
            return _stopped(console, trainer, stop.received, folder, loggers)
        if best is not None and best.step is not None:
            method.load_state_dict(best.weights, strict=False)
            if is_writer():
                write_best(folder.best, method, best.step)
            console.print(f"step {best.step} came nearest to q*: KL(q*||q) {best.kl:.3f}; its weights are kept")
        # Lightning has moved the method to the CPU.
        method.to(device)
        with console.status("evaluating"):
            report = evaluate_method(method, data, task, world)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if report is None:
            return Outcome()
        rewind(loggers, folder, config.optim.steps)  # drop records of an evaluation that did not finish
        metrics = last_numbers(folder) | data.summary | final_metrics(config, report, folder)
        metrics["perf/rollouts_per_s"] = rollouts_per_s
        if best is not None and best.step is not None:
            metrics["val/step_kept"] = float(best.step)
        log_now(loggers, metrics, config.optim.steps)
        _show_on_page(config, loggers, data, report)
        finish(loggers)
    # All numbers are on disk, so that nothing that happens while they are shown can fail the run.
    folder.mark("finished")
    _show(console, config, report, task.name, folder)
    return Outcome(metrics)


def _show(console: Console, config: Config, report: Report, task: str, folder: RunFolder) -> None:
    """Show the results; an error of the terminal becomes a warning, since the run has finished."""
    try:
        show_results(console, config, report, task)
    except Exception as error:
        log.warning("the table cannot be shown (%s: %s); it is in %s", type(error).__name__, error, folder.path)


def _saved(config: Config, folder: RunFolder, base: BaseLM, resume: bool) -> Saved:
    """Read the checkpoint of a resumed run; refuse one of another base, or of more steps than are asked for."""
    path = folder.checkpoint if resume and folder.checkpoint.is_file() else None
    state = None if path is None else read_checkpoint(path)
    if state is not None:
        check_base(state, base)
        if state["global_step"] > config.optim.steps:
            raise CheckpointError(
                f"optim.steps={config.optim.steps}: run {folder.path} has done {state['global_step']} steps, whose "
                "records stay; give as many or more, or start a new run"
            )
    return Saved(path, state, resume)


def _sharded(console: Console, config: Config, base: BaseLM, device: torch.device) -> RolloutMethod:
    """Build the method and shard its base, adapters included, over the processes of this machine."""
    connect(device, backend_of(config.trainer, device))
    method = build_method(config, base)
    shard_base(base, config.trainer.devices, device)
    held, total = bytes_held(base.model)
    console.print(f"each process holds {held / 1e6:.1f} MB of the {total / 1e6:.1f} MB of {base.name}")
    return method


def _callbacks(
    config: Config,
    folder: RunFolder,
    stop: GracefulStop,
    record: OpenRecord,
    rounds: Rounds,
    best: KeepBest | None,
    *,
    resumed: bool,
) -> list[Callback]:
    """List the callbacks in their order within a step: agree on stopping, save, then draw the next round."""
    every = config.trainer.val_every
    last = LastCheckpoint(
        folder.path / "checkpoints" / LAST, config.trainer.checkpoint_every, also_after=round_starts(config)[1:]
    )
    callbacks: list[Callback] = [stop, last, record]
    if resumed and every:
        callbacks.append(PendingValidation(every, folder.has_held_out_numbers))
    callbacks += [rounds] if best is None else [best, rounds]
    if config.optim.norm_steps:
        callbacks.append(NormFit(config.optim, config.trainer.progress))
    return callbacks


def _fit(trainer: L.Trainer, method: RolloutMethod, data: RolloutDataModule, saved: Saved, stop: GracefulStop) -> None:
    try:
        trainer.fit(method, datamodule=data, ckpt_path=saved.path, weights_only=True)
    except SystemExit:
        # Lightning turns the KeyboardInterrupt of a second Ctrl-C into SystemExit with code 1.
        if stop.received is None:
            raise
        raise interruption(stop.received) from None


def _stopped(
    console: Console, trainer: L.Trainer, received: int, folder: RunFolder, loggers: Sequence[Logger]
) -> Outcome:
    """Write STATUS and print a hint for a run that was asked to stop; return its outcome."""
    code = exit_code_of(interruption(received))
    folder.mark("interrupted", signal.Signals(received).name)
    if trainer.is_global_zero:
        hint = f"go on with: python train.py --resume {folder.path}"
        console.print(f"stopped at step {trainer.global_step}; {hint}", soft_wrap=True)
    finish(loggers, code)
    return Outcome({}, code)


def _show_on_page(config: Config, loggers: Sequence[Logger], data: RolloutDataModule, report: Report) -> None:
    """Log to W&B the samples that the terminal shows, and the artifacts of ``logging.artifacts``."""
    if (page := page_of(loggers)) is None:
        return
    if shown := report.after.first_rows(config.eval.show):
        page.log_samples(report.after.take(shown), config.optim.steps)
    if "checkpoints" in config.logging.artifacts:
        page.log_checkpoint(config.method)
    if "rollouts" in config.logging.artifacts:
        page.log_rollouts({"train": [store.folder for store in data.stores], "val": data.held_out_folders})
