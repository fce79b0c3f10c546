"""Evaluate a run, or a base model alone.

python evaluate.py runs/quickstart/<id>
python evaluate.py base quickstart            the base of an experiment, before any training
python evaluate.py runs/... eval.samples_per_prompt=32 alpha=1.5
python evaluate.py runs/... --where           which tokens the distance to q* comes from
python evaluate.py runs/... --exact 16        how near one text chosen among 16 comes to q*
python evaluate.py runs/... --exact 16 --decoder smc
"""

from __future__ import annotations

import sys
from typing import Literal

from dinado.errors import ConfigError
from workbench import cli
from workbench.launching import check_alone
from workbench.run_folder import find_run
from workbench.settings import loader

WHERE = cli.Option("where", "Show which kinds of tokens and positions the distances come from.")
EXACT = cli.Option("exact", "Measure texts that are chosen among K of the model in proportion to p C / q.", "K")
DECODER = cli.Option("decoder", "How --exact chooses: sir (default), smc, or qrs, whose dial is measured.", "NAME")
FIGURE = cli.Option("figure", "Draw the dial of --decoder qrs to this .svg, .png or .pdf file.", "FILE")
DECODERS: tuple[Literal["sir", "smc", "qrs"], ...] = ("sir", "smc", "qrs")
OPTIONS = [WHERE, EXACT, DECODER, FIGURE, cli.JSON]


def main(arguments: cli.Arguments) -> int:
    """Load the run or the base, evaluate it, and print the table."""
    if not arguments.positional:
        raise ConfigError("name a run (runs/<experiment>/<id>), or `base` and an experiment; see --help")
    check_alone()
    quiet = arguments.flag(cli.JSON)
    if arguments.positional[0] == "base":
        cli.only(arguments, 2)
        if any(arguments.value(option) for option in (EXACT, DECODER, FIGURE)):
            raise ConfigError("--exact chooses among texts of a trained run; best-of-n of a base is in its table")
        if arguments.flag(WHERE):
            raise ConfigError("--where explains a trained run; a base has no distance of its own to explain")
        if len(arguments.positional) < 2:
            raise ConfigError("`base` needs an experiment after it, such as: python evaluate.py base quickstart")
        loaded = loader.load(arguments.positional[1], arguments.overrides)
        from engine.evaluate_alone import evaluate_base

        numbers = evaluate_base(loaded.config, quiet=quiet) | {"run_dir": None}
    else:
        cli.only(arguments, 1)
        folder = find_run(arguments.positional[0])
        loaded = loader.from_run_folder(folder.path, arguments.overrides)
        exact = cli.number(arguments, EXACT, int, None, least=1)
        decoder = cli.choice(arguments, DECODER, DECODERS)
        if exact is None and arguments.value(DECODER):
            raise ConfigError("--decoder belongs to --exact K; add it")
        figure = arguments.value(FIGURE)
        if figure is not None and decoder != "qrs":
            raise ConfigError("--figure draws the dial of --decoder qrs; add it")
        from engine.evaluate_alone import evaluate_run

        where = arguments.flag(WHERE)
        numbers = evaluate_run(
            loaded.config, folder, quiet=quiet, explain=where, exact=exact, decoder=decoder, figure=figure
        )
        numbers |= {"run_dir": str(folder.path)}
    if quiet:
        cli.print_json(numbers)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or "", OPTIONS))
