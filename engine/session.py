"""One training run from settings to final table: what ``train.py`` does once it knows what is wanted."""

from __future__ import annotations

import json
import math
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
from datamodules.fill_stores import StoreFiller
from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.run_stores import RunStores
from datamodules.state_choice import StateChoice
from datamodules.tasks import Task, build_task
from dinado.bases.causal import BaseLM
from dinado.bases.sharding import bytes_held, shard_base
from dinado.evaluation.exact_rows import exact_base_row
from dinado.evaluation.result_rows import Row
from dinado.evaluation.result_table import first_samples, print_samples, print_table
from dinado.ranks import is_writer
from engine.checkpoints import LAST, read_checkpoint
from engine.console import run_console
from engine.devices import device_of
from engine.evaluation import Report, base_rows, evaluate_method
from engine.loggers.build_loggers import build_loggers, check_loggers, closing, finish, page_of, rewind
from engine.record import OpenRecord
from engine.restoring import build_base, build_world, check_and_load
from engine.rounds import Rounds
from engine.trainer import build_trainer, connect, count_parameters
from lightning_modules.build_method import build_method
from lightning_modules.callbacks.graceful_stop import GracefulStop, interruptible, interruption
from lightning_modules.callbacks.last_checkpoint import LastCheckpoint
from lightning_modules.callbacks.norm_fit import NormFit
from lightning_modules.callbacks.pending_validation import PendingValidation
from lightning_modules.log_now import log_now
from lightning_modules.rollout_method import RolloutMethod, check_base
from workbench.launching import exit_code_of
from workbench.run_folder import RunFolder
from workbench.settings.config import Config
from workbench.settings.derived import round_starts


@dataclass
class Outcome:
    """How a run ended."""

    metrics: Row = field(default_factory=dict)
    exit_code: int = 0


@dataclass
class Saved:
    """Where a resumed run goes on.

    Attributes:
        path: checkpoint; None where the run has none yet, or is new.
        state: its content.
        resumed: whether the run goes on at all.
    """

    path: Any
    state: dict[str, Any] | None
    resumed: bool

    @property
    def step(self) -> int | None:
        """Optimiser steps that are done; None for a new run."""
        if not self.resumed:
            return None
        return 0 if self.state is None else int(self.state["global_step"])


@interruptible()
def train(
    config: Config, folder: RunFolder, *, resume: bool, quiet: bool, on_start: Callable[[], None] | None = None
) -> Outcome:
    """Collect rollouts, train, evaluate, report.

    Args:
        resume: continue from the run's last checkpoint, from the start where it has none.
        quiet: no tables (stdout belongs to ``--json``).
        on_start: called once the settings, and the checkpoint if there is one, have proved to fit.
    """
    console = run_console(quiet)
    # What would otherwise be found out after the sampling.
    device = device_of(config.trainer)
    check_loggers(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    task, base = build_task(config), build_base(config)
    world = build_world(config, base)
    saved = _saved(folder, base, resume)
    loggers = build_loggers(config, folder, saved.step)
    with closing(loggers):
        method = _sharded(console, config, base, device) if config.trainer.shard_base else None
        base.model.to(device)
        console.print(f"run {folder.path}: {config.method} on {base.name}, {len(task.train_prompts)} prompts")
        stores, states = RunStores(config, base, task), StateChoice(config, base)
        filler = StoreFiller(base, task.oracle, states, progress=config.trainer.progress)
        rollouts_per_s = filler.fill_all(stores.needed())
        for store in stores.first():
            filler.fill_states(store)
        data = RolloutDataModule(config, base, task)
        data.setup("fit")
        # No sooner without need: sampling is faster without adapters that are switched off.
        method = method or build_method(config, base)
        trained, total = count_parameters(method)
        console.print(f"training {trained:,} of {total:,} parameters for {config.optim.steps} steps")
        if saved.state is not None:
            check_and_load(method, saved.state)
        else:
            rewind(loggers, folder, 0)  # of a start that came to no checkpoint
            log_now(loggers, {**data.summary, "perf/rollouts_per_s": rollouts_per_s}, 0)
        stop = GracefulStop()
        record = OpenRecord(folder, loggers, saved.step if saved.state is not None else None, on_start)
        callbacks = _callbacks(
            config, folder, stop, record, Rounds(method, data, filler), resumed=saved.state is not None
        )
        accumulation = micro_batches(config.optim, config.trainer.devices * config.trainer.num_nodes)
        trainer = build_trainer(config.trainer, config.optim, folder, accumulation, loggers, callbacks)
        _fit(trainer, method, data, saved, stop)
        if stop.received is not None:
            return _stopped(console, trainer, stop.received, folder, loggers)
        # Lightning has moved it to the CPU.
        method.to(device)
        with console.status("evaluating"):
            report = evaluate_method(method, data, task, world)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if report is None:
            return Outcome()
        rewind(loggers, folder, config.optim.steps)  # of an evaluation that came to no end
        metrics = last_numbers(folder) | data.summary | final_metrics(config, report, folder)
        metrics["perf/rollouts_per_s"] = rollouts_per_s
        log_now(loggers, metrics, config.optim.steps)
        _show_on_page(config, loggers, data, stores, report)
        finish(loggers)
    _show(console, config, report, task.name)
    return Outcome(metrics)


def _saved(folder: RunFolder, base: BaseLM, resume: bool) -> Saved:
    """Read the checkpoint of a run that goes on; refuse one of another base."""
    path = folder.checkpoint if resume and folder.checkpoint.is_file() else None
    state = None if path is None else read_checkpoint(path)
    if state is not None:
        check_base(state, base)
    return Saved(path, state, resume)


def _sharded(console: Console, config: Config, base: BaseLM, device: torch.device) -> RolloutMethod:
    """Shard a base over the processes of this machine, with the adapters that it is to have."""
    connect(device)
    method = build_method(config, base)
    shard_base(base, config.trainer.devices, device)
    held, total = bytes_held(base.model)
    console.print(f"each process holds {held / 1e6:.1f} MB of the {total / 1e6:.1f} MB of {base.name}")
    return method


def _callbacks(
    config: Config, folder: RunFolder, stop: GracefulStop, record: OpenRecord, rounds: Rounds, *, resumed: bool
) -> list[Callback]:
    """List the callbacks in the order in which they act on a step: agree to stop, save, then draw the next round."""
    every = config.trainer.val_every
    last = LastCheckpoint(
        folder.path / "checkpoints" / LAST, config.trainer.checkpoint_every, also_after=round_starts(config)[1:]
    )
    callbacks: list[Callback] = [stop, last, record, rounds]
    if resumed and every:
        callbacks.append(PendingValidation(every, folder.has_held_out_numbers))
    if config.optim.norm_steps:
        callbacks.append(NormFit(config.optim, config.trainer.progress))
    return callbacks


def _fit(trainer: L.Trainer, method: RolloutMethod, data: RolloutDataModule, saved: Saved, stop: GracefulStop) -> None:
    try:
        trainer.fit(method, datamodule=data, ckpt_path=saved.path, weights_only=True)
    except SystemExit:
        # Lightning makes exit code 1 of the KeyboardInterrupt that a second Ctrl-C raises.
        if stop.received is None:
            raise
        raise interruption(stop.received) from None


def _stopped(
    console: Console, trainer: L.Trainer, received: int, folder: RunFolder, loggers: Sequence[Logger]
) -> Outcome:
    """Leave a true STATUS and a hint behind a run that was asked to stop."""
    code = exit_code_of(interruption(received))
    folder.mark("interrupted", signal.Signals(received).name)
    if trainer.is_global_zero:
        hint = f"go on with: python train.py --resume {folder.path}"
        console.print(f"stopped at step {trainer.global_step}; {hint}", soft_wrap=True)
    finish(loggers, code)
    return Outcome({}, code)


def _show_on_page(
    config: Config, loggers: Sequence[Logger], data: RolloutDataModule, stores: RunStores, report: Report
) -> None:
    """Put on W&B, besides the numbers, the samples that a terminal shows too and what it was asked to keep."""
    if (page := page_of(loggers)) is None:
        return
    if shown := report.after.first_rows(config.eval.show):
        page.log_samples(report.after.take(shown), config.optim.steps)
    if "checkpoints" in config.logging.artifacts:
        page.log_checkpoint(config.method)
    if "rollouts" in config.logging.artifacts:
        page.log_rollouts({"train": [store.folder for store in data.stores], "val": [stores.held_out().folder]})


def last_numbers(folder: RunFolder) -> Row:
    """What the last logged step and the last validation said, in this process or in one before it."""
    numbers: Row = {}
    for record in folder.metrics():
        if "train/loss" in record or "val/kl_to_optimum" in record:
            numbers |= {key: value for key, value in record.items() if key != "step"}
    return {key: math.nan if value is None else value for key, value in numbers.items()}


def final_metrics(config: Config, report: Report, folder: RunFolder) -> Row:
    """The method's row, the reference rows under their own prefixes, and every sample beside them on disk."""
    metrics = dict(report.rows[config.method])
    for label, prefix in (("base", "base"), *((k, "best_of_n") for k in report.rows if k.startswith("best of"))):
        metrics |= {f"{prefix}/{key.removeprefix('val/')}": value for key, value in report.rows[label].items()}
    if is_writer():
        samples = folder.path / "samples"
        samples.mkdir(exist_ok=True)
        for name, records in (("before", report.before), ("after", report.after)):
            lines = [json.dumps(record) for record in records.records()]
            (samples / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (folder.path / "table.json").write_text(json.dumps(report.rows, indent=2) + "\n", encoding="utf-8")
    return metrics


def dry_run(config: Config) -> None:
    """Build everything, print the sizes, take no step and sample nothing."""
    console = run_console(False)
    task, base = build_task(config), build_base(config)
    method = build_method(config, base)
    trained, total = count_parameters(method)
    console.print(f"base {base.name}, {len(task.train_prompts)} training and {len(task.val_prompts)} held-out prompts")
    for store in RunStores(config, base, task).needed():
        missing, everything = store.spec.num_rollouts(store.missing_blocks()), store.spec.num_rollouts()
        console.print(f"{store.spec.split} rollouts: {everything - missing} of {everything} stored in {store.folder}")
    if config.rollouts.rounds > 1:
        console.print(f"{config.rollouts.rounds - 1} more rounds of train rollouts, from the model as it will be then")
    optim = config.optim
    amount = f"{optim.batch_size} rollouts" if optim.batch_tokens is None else f"{optim.batch_tokens} response tokens"
    console.print(
        f"method {config.method}: {trained:,} of {total:,} parameters trained, {config.optim.steps} steps of "
        f"{amount}, optimiser state {trained * 8 / 2**20:.0f} MB"
    )


def _show(console: Console, config: Config, report: Report, task: str) -> None:
    error = report.rows[config.method].get("val/kl_to_optimum_se")
    exact = "" if error is None else f"; standard error of the method's KL(q*||q): {error:.2g}"
    print_table(console, report.rows, f"{task}: held-out prompts, 95 % intervals over prompts{exact}")
    if config.eval.show and any(report.after.texts):
        print_samples(console, report.before, report.after, config.eval.show, config.method)


def evaluate_run(config: Config, folder: RunFolder, *, quiet: bool) -> Row:
    """Evaluate a trained run afresh; settings may differ from those it was trained with where weights allow."""
    console = run_console(quiet)
    task, base = build_task(config), build_base(config)
    # Before adapters go into the base: the world is enumerated from p.
    world = build_world(config, base)
    base.model.to(device_of(config.trainer))
    _fill_held_out(config, base, task)
    method = build_method(config, base).to(device_of(config.trainer))
    check_and_load(method, read_checkpoint(folder.checkpoint))
    data = RolloutDataModule(config, base, task)
    data.setup("validate")
    with console.status("evaluating"):
        report = evaluate_method(method, data, task, world)
    assert report is not None, "one process evaluates a finished run"
    _show(console, config, report, task.name)
    return report.rows[config.method]


def evaluate_base(config: Config, *, quiet: bool) -> Row:
    """Evaluate a base alone from its held-out rollouts."""
    console = run_console(quiet)
    task, base = build_task(config), build_base(config)
    world = build_world(config, base)
    base.model.to(device_of(config.trainer))
    _fill_held_out(config, base, task)
    rows, samples = base_rows(config, base, task)
    if world is not None:
        rows["base"] |= exact_base_row(world)
    print_table(console, rows, f"{task.name}: the base, before training")
    for record in first_samples(samples, config.eval.show):
        console.print(f"{record['prompt']}\n  {record['text']}", markup=False)
    return rows["base"]


def _fill_held_out(config: Config, base: BaseLM, task: Task) -> None:
    filler = StoreFiller(base, task.oracle, StateChoice(config, base), progress=config.trainer.progress)
    filler.fill_all([RunStores(config, base, task).held_out()])
