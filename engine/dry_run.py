"""What a run would do, without a step."""

from __future__ import annotations

from datamodules.run_stores import RunStores
from datamodules.tasks import build_task
from engine.before_sampling import check_before_sampling
from engine.console import run_console
from engine.restoring import build_base
from engine.trainer import count_parameters
from lightning_modules.build_method import build_method
from workbench.settings.config import Config


def dry_run(config: Config) -> None:
    """Build everything, print the sizes, take no step and sample nothing."""
    console = run_console(False)
    task, base = build_task(config), build_base(config)
    check_before_sampling(config, base, task)
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
        f"{amount}, optimiser state {trained * 8 / 1e6:.0f} MB"
    )
