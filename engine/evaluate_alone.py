"""Evaluation without training, of a finished run or of a base: what ``evaluate.py`` does."""

from __future__ import annotations

from typing import Any

from datamodules.fill_stores import StoreFiller
from datamodules.held_out import HeldOut
from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.state_choice import StateChoice
from datamodules.tasks import Task, build_task
from dinado.bases.causal import BaseLM
from dinado.evaluation.exact_rows import exact_base_row
from dinado.evaluation.result_rows import Row
from dinado.evaluation.result_table import first_samples, print_table
from engine.before_sampling import check_held_out
from engine.checkpoints import read_checkpoint
from engine.console import run_console
from engine.devices import device_of
from engine.dial_figure import check_figure, draw_dial
from engine.evaluation import base_rows, evaluate_method
from engine.exact_decoding import Decoder, exact_numbers, show_exact
from engine.explained_distance import check_where, show_where, where
from engine.restoring import build_base, build_world, check_and_load
from engine.results import show_results
from engine.run_twist import rollouts_for_twist
from lightning_modules.build_method import build_method
from workbench.run_folder import RunFolder
from workbench.settings.config import Config


def evaluate_run(
    config: Config,
    folder: RunFolder,
    *,
    quiet: bool,
    explain: bool = False,
    exact: int | None = None,
    decoder: Decoder = "sir",
    figure: str | None = None,
) -> dict[str, Any]:
    """Evaluate a trained run anew; settings may differ from those of training as far as the weights still fit.

    Args:
        explain: show which tokens the distances come from, and return that as ``where``.
        exact: also measure texts chosen among so many, and return that as ``exact``.
        decoder: how these are chosen.
        figure: file to draw the dial of ``qrs`` to.
    """
    console = run_console(quiet)
    if explain:
        check_where(config)
    if figure is not None:
        check_figure(figure)
    folder.make_importable()
    task, base = build_task(config), build_base(config, folder.started())
    check_held_out(config, base, task)
    if decoder == "smc":
        rollouts_for_twist(config, base, task)
    # Before adapters are injected into the base, because the world is enumerated from p.
    world = build_world(config, base)
    base.model.to(device_of(config.trainer))
    _fill_held_out(config, base, task)
    method = build_method(config, base).to(device_of(config.trainer))
    check_and_load(method, read_checkpoint(folder.trained))
    data = RolloutDataModule(config, base, task)
    data.setup("validate")
    with console.status("evaluating"):
        report = evaluate_method(method, data, task, world)
    assert report is not None, "one process evaluates a finished run"
    show_results(console, config, report, task.name)
    numbers: dict[str, Any] = dict(report.rows[config.method])
    if explain:
        numbers["where"] = where(method, data, task, report.after)
        show_where(console, numbers["where"])
    if exact is not None:
        numbers["exact"] = exact_numbers(method, data, task, exact, decoder, progress=config.trainer.progress)
        if figure is not None:
            draw_dial(numbers["exact"]["dial"], figure)
        show_exact(console, numbers["exact"], numbers["val/kl_to_optimum"])
    return numbers


def evaluate_base(config: Config, *, quiet: bool) -> Row:
    """Evaluate a base alone, from its held-out rollouts."""
    console = run_console(quiet)
    task, base = build_task(config), build_base(config)
    check_held_out(config, base, task)
    world = build_world(config, base)
    base.model.to(device_of(config.trainer))
    _fill_held_out(config, base, task)
    rows, samples = base_rows(config, HeldOut(config, base, task).read(), task)
    if world is not None:
        rows["base"] |= exact_base_row(world)
    print_table(console, rows, f"{task.name}: the base, before training")
    for record in first_samples(samples, config.eval.show):
        console.print(f"{record['prompt']}\n  {record['text']}", markup=False)
    return rows["base"]


def _fill_held_out(config: Config, base: BaseLM, task: Task) -> None:
    filler = StoreFiller(base, task.oracle, StateChoice(config, base), progress=config.trainer.progress)
    filler.fill_held_out(HeldOut(config, base, task))
