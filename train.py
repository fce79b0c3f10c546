"""Train a language model to obey an oracle.

python train.py                                   list the experiments
python train.py quickstart optim.lr=3e-4          run one, with settings changed
python train.py --help [section]                  every setting
python train.py --resume runs/quickstart/<id>     continue a run that was stopped
python train.py quickstart --continue             the same for a job that is started again as it was
"""

from __future__ import annotations

import sys

from dinado.errors import ConfigError
from dinado.ranks import is_writer
from workbench import cli, help
from workbench.launching import check_alone, check_place
from workbench.processes import processes
from workbench.run_folder import RunFolder, find_run
from workbench.run_names import FAST_DEV_RUN
from workbench.run_status import status
from workbench.settings import loader
from workbench.settings.loaded import Loaded

OPTIONS = [cli.PRINT_CONFIG, cli.DRY_RUN, cli.PROBE, cli.FAST_DEV_RUN, cli.RESUME, cli.CONTINUE, cli.JSON]


def main(arguments: cli.Arguments) -> int:
    """Load the settings, create or find the run folder, and train in it."""
    resume, goes_on = arguments.value(cli.RESUME), arguments.flag(cli.CONTINUE)
    cli.only(arguments, 1 if resume is None else 0)
    if resume is not None and arguments.flag(cli.FAST_DEV_RUN):
        raise ConfigError("--fast-dev-run tries an experiment out; a run to be resumed has its own settings")
    if resume is not None and goes_on:
        raise ConfigError("--resume names a run and --continue finds the one of this job; give one of them")
    if arguments.flag(cli.JSON) and (arguments.flag(cli.DRY_RUN) or arguments.flag(cli.PRINT_CONFIG)):
        raise ConfigError("--json prints the numbers of a run; without --dry-run and --print-config there will be some")
    if resume is None and not arguments.positional:
        print(help.listing())
        return 0
    if resume is not None:
        folder = find_run(resume)
        loaded = loader.from_run_folder(folder.path, arguments.overrides)
    else:
        loaded = loader.load(arguments.positional[0], arguments.overrides)
        if arguments.flag(cli.FAST_DEV_RUN):
            loader.shrink(loaded)
    if arguments.flag(cli.PRINT_CONFIG):
        help.print_config(loaded)
        return 0
    # Heavy imports come after the settings have been checked.
    if arguments.flag(cli.DRY_RUN):
        from engine.dry_run import dry_run

        dry_run(loaded.config)
        return 0
    if arguments.flag(cli.PROBE):
        return look(arguments, loaded)
    check_place(loaded.config.trainer.devices, loaded.config.trainer.num_nodes)
    if resume is None:
        # The overrides record --fast-dev-run, so that a small trial run and the full run get different names.
        words = [*arguments.overrides, *([FAST_DEV_RUN] if arguments.flag(cli.FAST_DEV_RUN) else [])]
        folder = (RunFolder.of_job if goes_on else RunFolder.create)(loaded, words)
    if goes_on and status(folder.path) == "finished":
        # Every process reads the same STATUS, and none waits for the others.
        if is_writer():
            print(f"run {folder.path} is finished", file=sys.stderr if arguments.flag(cli.JSON) else sys.stdout)
            if arguments.flag(cli.JSON):
                cli.print_json({**folder.metrics()[-1], "run_dir": str(folder.path)})
        return 0
    with folder, processes(loaded.config.trainer.devices):
        try:
            # This import takes seconds; the other processes import at the same time.
            from engine.session import train

            outcome = train(
                loaded.config,
                folder,
                resume=resume is not None or goes_on,
                quiet=arguments.flag(cli.JSON),
                on_start=None if resume is None else lambda: folder.change(loaded, arguments.overrides),
            )
        except KeyboardInterrupt:
            # Before the first optimiser step, or at a second Ctrl-C. Finished blocks of rollouts are kept in any case.
            if is_writer():
                print(f"go on with: python train.py --resume {folder.path}", file=sys.stderr)
            raise
    if arguments.flag(cli.JSON) and is_writer():
        cli.print_json({**outcome.metrics, "run_dir": str(folder.path)})
    return outcome.exit_code


def look(arguments: cli.Arguments, loaded: Loaded) -> int:
    """Judge some texts of the base and train nothing (``--probe``)."""
    check_alone()
    from engine.probe import probe

    if arguments.value(cli.RESUME) is not None:
        raise ConfigError("--probe looks at the base of an experiment; a run that exists needs none")
    words = [*arguments.positional, *arguments.overrides]
    numbers = probe(loaded.config, words, quiet=arguments.flag(cli.JSON))
    if arguments.flag(cli.JSON):
        cli.print_json(numbers)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or "", OPTIONS))
