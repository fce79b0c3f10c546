"""Compare runs.

python compare.py runs/exact_world                          every finished run in a folder
python compare.py RUN RUN ... --by success                  rank by another number than KL to the optimum
python compare.py runs/sweeps/<name> --html report.html     a page for the browser, in one file
python compare.py runs/exact_world --watch                  the same while runs train
"""

from __future__ import annotations

import sys

from dinado.errors import ConfigError
from workbench import cli

BY = cli.Option("by", "Number that ranks the groups, such as success, kl_to_optimum or cider.", "METRIC")
CSV = cli.Option("csv", "Write one line a group.", "FILE")
HTML = cli.Option("html", "Write a page that needs nothing but this one file.", "FILE")
FIGURES = cli.Option("figures", "Write every figure as PNG and SVG.", "FOLDER")
WATCH = cli.Option("watch", "Write the page (--html, else compare.html) again whenever a run has something new.")
EVERY = cli.Option("every", "Seconds between looks at the runs with --watch; 5 when not given.", "SECONDS")
OPTIONS = [BY, CSV, HTML, FIGURES, WATCH, EVERY, cli.JSON]


def main(arguments: cli.Arguments) -> int:
    """Find, read and compare runs, and show the result."""
    if not arguments.positional:
        raise ConfigError("name runs, or folders that hold some, such as: python compare.py runs/exact_world")
    watched = arguments.flag(WATCH)
    for option in (CSV, FIGURES, cli.JSON) if watched else (EVERY,):
        if arguments.flag(option):
            raise ConfigError(f"--{option.name} {'does not go with' if watched else 'needs'} --watch")
    # Heavy imports come after the command line has been checked.
    from workbench.report import output
    from workbench.report.comparison import compare, read_all
    from workbench.report.run_reader import find_runs

    words, by = arguments.positional, arguments.value(BY)
    if watched:
        from workbench.report.watch import watch

        seconds = cli.number(arguments, EVERY, float, 5.0, least=0.5)
        return watch(words, by, output.writable(arguments.value(HTML) or "compare.html"), seconds)
    page, table, folder = (arguments.value(option) for option in (HTML, CSV, FIGURES))
    files = [output.writable(name) for name in (page, table) if name is not None]
    runs, notes = read_all(find_runs(words))
    comparison = compare(runs, by, notes)
    output.show(comparison, quiet=arguments.flag(cli.JSON))
    if table is not None:
        output.write_csv(comparison, files[-1])
    if folder is not None:
        output.write_figures(comparison, folder)
    if page is not None:
        output.write_page(comparison, files[0])
    if arguments.flag(cli.JSON):
        output.print_json(comparison)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or "", OPTIONS, settings=False))
