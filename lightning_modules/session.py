"""One training run from settings to final table: what ``train.py`` does once it knows what is wanted."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.logging import RichHandler

from datamodules.plans import micro_batches
from datamodules.prepare import prepare_rollouts, prepare_states
from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.stores import stores_of_run, val_store
from datamodules.tasks import build_task
from dinado.evaluation.exact import exact_base_row
from dinado.evaluation.rows import Row
from dinado.evaluation.table import first_samples, print_samples, print_table
from dinado.models.base_lm import BaseLM
from dinado.models.sharding import bytes_held, shard_base
from experiments.config import Config
from experiments.place import exit_code_of, is_writer
from experiments.run_folder import RunFolder
from lightning_modules.base import check_base
from lightning_modules.build import build_method
from lightning_modules.callbacks import PendingValidation, interruptible, interruption
from lightning_modules.checkpoints import read_checkpoint
from lightning_modules.devices import device_of
from lightning_modules.evaluation import Report, base_rows, evaluate_method
from lightning_modules.loggers.build import build_loggers, check_loggers, closing, finish, give, page_of, rewind
from lightning_modules.restore import build_base, build_world, check_and_load
from lightning_modules.rounds import Rounds
from lightning_modules.training import build_trainer, connect, count_parameters


@dataclass
class Outcome:
    """How a run ended."""

    metrics: Row = field(default_factory=dict)
    exit_code: int = 0


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
    console = _console(quiet)
    # What would otherwise be found out after the sampling.
    device = device_of(config)
    check_loggers(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    task, base = build_task(config), build_base(config)
    world = build_world(config, base)
    checkpoint = folder.checkpoint if resume and folder.checkpoint.is_file() else None
    saved = None if checkpoint is None else read_checkpoint(checkpoint)
    if saved is not None:
        check_base(saved, base)
    resumed_at = (0 if saved is None else int(saved["global_step"])) if resume else None
    loggers = build_loggers(config, folder, resumed_at)
    with closing(loggers):
        method = None
        if config.trainer.shard_base:
            connect(device)
            method = build_method(config, base)
            shard_base(base, config.trainer.devices, device)
            held, total = bytes_held(base.model)
            console.print(f"each process holds {held / 1e6:.1f} MB of the {total / 1e6:.1f} MB of {base.name}")
        base.model.to(device)
        console.print(f"run {folder.path}: {config.method} on {base.name}, {len(task.train_prompts)} prompts")
        rollouts_per_s = prepare_rollouts(config, base, task)
        prepare_states(config, base, task)
        data = RolloutDataModule(config, base, task)
        data.setup("fit")
        # No sooner without need: sampling is faster without adapters that are switched off.
        method = method or build_method(config, base)
        data.draw_round = Rounds(method, data).draw
        trained, total = count_parameters(method)
        console.print(f"training {trained:,} of {total:,} parameters for {config.optim.steps} steps")
        world_size = config.trainer.devices * config.trainer.num_nodes
        trainer, stop = build_trainer(config, folder, micro_batches(config.optim, world_size), loggers)
        if saved is not None:
            check_and_load(method, saved)
        else:
            rewind(loggers, folder, 0)  # of a start that came to no checkpoint
            give(loggers, {**data.summary, "perf/rollouts_per_s": rollouts_per_s}, 0)

        def begin(*_: object) -> None:
            if saved is not None:
                rewind(loggers, folder, int(saved["global_step"]))
            if on_start is not None:
                on_start()
            if (page := page_of(loggers)) is not None:
                page.save_settings()

        trainer.callbacks.append(LambdaCallback(on_train_start=begin))
        if saved is not None and config.trainer.val_every:
            trainer.callbacks.append(PendingValidation(config.trainer.val_every, folder.has_held_out_numbers))
        try:
            trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:
            # Lightning makes exit code 1 of the KeyboardInterrupt that a second Ctrl-C raises.
            if stop.received is None:
                raise
            raise interruption(stop.received) from None
        writer = trainer.is_global_zero
        if stop.received is not None:
            code = exit_code_of(interruption(stop.received))
            folder.mark("interrupted", signal.Signals(stop.received).name)
            if writer:
                hint = f"go on with: python train.py --resume {folder.path}"
                console.print(f"stopped at step {trainer.global_step}; {hint}", soft_wrap=True)
            finish(loggers, code)
            return Outcome({}, code)
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
        give(loggers, metrics, config.optim.steps)
        _show_on_page(loggers, data, base, report)
        finish(loggers)
    _show(console, config, report, task.name)
    return Outcome(metrics)


def _show_on_page(loggers: Sequence[Logger], data: RolloutDataModule, base: BaseLM, report: Report) -> None:
    """On W&B, besides the numbers: the samples that a terminal shows too, and what it was asked to keep."""
    config, page = data.config, page_of(loggers)
    if page is None:
        return
    if shown := report.after.first_rows(config.eval.show):
        page.log_samples(report.after.take(shown), config.optim.steps)
    if "checkpoints" in config.logging.artifacts:
        page.log_checkpoint(config.method)
    if "rollouts" in config.logging.artifacts:
        held_out = val_store(config, base, data.task)
        page.log_rollouts({"train": [store.folder for store in data.stores], "val": [held_out.folder]})


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
    console = _console(False)
    task, base = build_task(config), build_base(config)
    method = build_method(config, base)
    trained, total = count_parameters(method)
    console.print(f"base {base.name}, {len(task.train_prompts)} training and {len(task.val_prompts)} held-out prompts")
    for store in stores_of_run(config, base, task):
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


def _console(quiet: bool) -> Console:
    # A pipe or a log file has no width of its own; the table needs some.
    console = Console(stderr=quiet, width=None if sys.stdout.isatty() else 160)
    level = logging.INFO if is_writer() else logging.ERROR
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)], force=True
    )
    for noisy in ("httpx", "transformers", "lightning.pytorch", "lightning.fabric", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # peft sees GPT-2's Conv1D, does the right thing, and says so every time.
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
    # The frozen base is meant to be in eval mode while the rest trains.
    warnings.filterwarnings("ignore", message=".*eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # Held-out numbers are gathered over processes by ourselves; `sync_dist` would average what is already global.
    warnings.filterwarnings("ignore", message=".*It is recommended to use .self.log.*sync_dist.*")
    console.quiet = not is_writer()
    return console


def _show(console: Console, config: Config, report: Report, task: str) -> None:
    error = report.rows[config.method].get("val/kl_to_optimum_se")
    exact = "" if error is None else f"; standard error of the method's KL(q*||q): {error:.2g}"
    print_table(console, report.rows, f"{task}: held-out prompts, 95 % intervals over prompts{exact}")
    if config.eval.show and any(report.after.texts):
        print_samples(console, report.before, report.after, config.eval.show, config.method)


def evaluate_run(config: Config, folder: RunFolder, *, quiet: bool) -> Row:
    """Evaluate a trained run afresh; settings may differ from those it was trained with where weights allow."""
    console = _console(quiet)
    task, base = build_task(config), build_base(config)
    # Before adapters go into the base: the world is enumerated from p.
    world = build_world(config, base)
    base.model.to(device_of(config))
    prepare_rollouts(config, base, task, train=False)
    method = build_method(config, base).to(device_of(config))
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
    console = _console(quiet)
    task, base = build_task(config), build_base(config)
    world = build_world(config, base)
    base.model.to(device_of(config))
    prepare_rollouts(config, base, task, train=False)
    rows, samples = base_rows(config, base, task)
    if world is not None:
        rows["base"] |= exact_base_row(world)
    print_table(console, rows, f"{task.name}: the base, before training")
    for record in first_samples(samples, config.eval.show):
        console.print(f"{record['prompt']}\n  {record['text']}", markup=False)
    return rows["base"]
