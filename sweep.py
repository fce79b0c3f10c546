"""Run every trial of a sweep on this machine, several at a time; the file is one that `wandb sweep` takes, too.

python sweep.py                                   list the sweeps that ship with the project
python sweep.py variants_exact --jobs 2           run one, or go on with it: finished trials are not repeated
python sweep.py my_sweep.yaml optim.steps=400     one of your own, with a setting changed for every trial
python sweep.py lr_method --trials 20             so many trials of a random or a bayes search
"""

from __future__ import annotations

import os
import shlex
import sys

from dinado.errors import ConfigError
from workbench import cli
from workbench.cli import Option
from workbench.launching import check_alone
from workbench.plain_console import PlainConsole
from workbench.sweeping import definition
from workbench.sweeping import summary as report
from workbench.sweeping.driver import Driver
from workbench.sweeping.study import Bayes, Listed
from workbench.sweeping.sweep_folder import SweepFolder
from workbench.sweeping.trials import Maker, trials
from workbench.sweeping.view import View

JOBS = Option("jobs", "Trials at once (default 1).", "N")
TRIALS = Option("trials", "Trials in all; a grid needs none, and the file's run_cap is the default.", "N")
DRAWS = Option("draw-seed", "Seed of random and bayes draws (default 0).", "N")
PER = Option("per", "Rank the best settings of each value of a swept key alone, such as method.", "KEY")
DRY_RUN = Option("dry-run", "Check everything, list the trials, start none.")
OPTIONS = [JOBS, TRIALS, DRAWS, PER, DRY_RUN, cli.JSON]


def main(arguments: cli.Arguments) -> int:
    """Read and check the sweep, run its trials, and rank them."""
    cli.only(arguments, 1)
    check_alone()
    if not arguments.positional:
        print(report.listing())
        return 0
    sweep = definition.read(arguments.positional[0])
    jobs = cli.number(arguments, JOBS, int, 1, 1)
    seed = cli.number(arguments, DRAWS, int, 0, 0)
    count = cli.number(arguments, TRIALS, int, sweep.run_cap, 1)
    if count is None and sweep.method != "grid":
        raise ConfigError(f"{sweep.label}: method={sweep.method} has no end of trials: say how many with --trials N")
    report.check_per(sweep, arguments.value(PER))
    # Set for the trials and for the checks of their settings before.
    os.environ.setdefault("WANDB_MODE", "offline")
    maker = Maker(sweep, arguments.overrides)
    folder = SweepFolder(maker.folder, sweep.metric)
    console = PlainConsole(stderr=arguments.flag(cli.JSON))
    source: Bayes | Listed
    if sweep.method == "bayes":
        source = Bayes(maker, count or 0, seed, folder.path)
    else:
        source = Listed(trials(maker, count, seed))
    if arguments.flag(DRY_RUN):
        report.dry_run(console, sweep, source, folder, count)
        return 0
    folder.create(sweep.path.read_text(encoding="utf-8"))
    if isinstance(source, Bayes):
        source.open()
    view = View(console, sweep.metric, count if isinstance(source, Bayes) and count else len(source.all()))
    try:
        outcomes = Driver(sweep, source, folder, jobs, view).run()
    except KeyboardInterrupt:
        command = shlex.join(["python", "sweep.py", *sys.argv[1:]])
        print(f"go on with: {command}", file=sys.stderr)
        raise
    result = report.finish(console, sweep, source, folder, outcomes, arguments.value(PER))
    if arguments.flag(cli.JSON):
        cli.print_json(result.record)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or "", OPTIONS))
