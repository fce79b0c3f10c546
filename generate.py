"""Write with a trained model, or with a base.

python generate.py runs/quickstart/<id> --prompt "Write one short sentence about a lighthouse."
python generate.py runs/quickstart/<id> --prompt "..." --num 4 --mode beam --alpha 1.5
cat prompts.txt | python generate.py runs/quickstart/<id>            one prompt a line
python generate.py runs/quickstart/<id> --input prompts.jsonl --output texts.jsonl
python generate.py runs/quickstart/<id> base.name=/new/place/model --prompt "..."
python generate.py runs/quickstart/<id> --input prompts.jsonl --exact 16 --verify
python generate.py runs/quickstart/<id> runs/own/<id> --alpha 1 0.5 --prompt "..."

Several runs on one base decode together, with p * R_1^alpha_1 * R_2^alpha_2: each was trained on its own oracle, and
their texts obey all of them. One --alpha is the strength of all, otherwise there is one for each.

With --exact K every text is chosen among K of the model in proportion to p C / q, by the run's oracle (of several, by
the product of their oracles), which reads the fields of the row: what is written comes from q* in the limit. A text
that the oracle rejects is written only where all K are rejected, and never with --verify.

A line of the output holds the fields of its input row and `text`; where rows have a `text` of their own, they keep it
and the new text is `response`. Of the settings, base.name, data.cache and trainer.accelerator can be changed.
"""

from __future__ import annotations

import sys

from dinado.errors import ConfigError
from workbench import cli
from workbench.launching import check_alone
from workbench.run_folder import find_run

PROMPT = cli.Option("prompt", "The prompt; without it and without --input, prompts are read from stdin.", "TEXT")
INPUT = cli.Option("input", "JSON lines, each with a `prompt`; other fields are kept.", "FILE")
OUTPUT = cli.Option("output", "Write JSON lines here instead of text to stdout.", "FILE")
NUM = cli.Option("num", "Texts for each prompt (default 1).", "N")
MODE = cli.Option("mode", "sample (default), greedy or beam.", "MODE")
BEAMS = cli.Option("beams", "Beams of --mode beam (default 8).", "N")
ALPHA = cli.Option("alpha", "Control strength, p * R^alpha; of several runs one each (default: the run's).", "X", True)
TOKENS = cli.Option("max-new-tokens", "Budget of a text (default: the run's).", "N")
SEED = cli.Option("seed", "Seed of the samples (default 0).", "N")
EXACT = cli.Option("exact", "Choose every text among K in proportion to p C / q.", "K")
BUDGET = cli.Option("budget", "Most texts to draw for one with --exact, while none is accepted (default: K).", "N")
VERIFY = cli.Option("verify", "With --exact, write no text that the oracle rejects.")
SETTINGS = ("base.name", "data.cache", "trainer.accelerator")
OPTIONS = [PROMPT, INPUT, OUTPUT, NUM, MODE, BEAMS, ALPHA, TOKENS, SEED, EXACT, BUDGET, VERIFY, cli.JSON]


def main(arguments: cli.Arguments) -> int:
    """Read prompts, restore the runs, write texts."""
    runs = arguments.positional
    if not runs:
        raise ConfigError("name one run, such as runs/quickstart/<id>, or several of one base; see --help")
    check_alone()
    trained = [find_run(run).trained.resolve() for run in runs]
    if twice := [run for run, file in zip(runs, trained, strict=True) if trained.count(file) > 1]:
        raise ConfigError(f"{twice[0]} is named twice; name it once, with --alpha 2 for twice the strength")
    alphas = cli.numbers(arguments, ALPHA, float, least=0.0)
    mode = arguments.value(MODE) or "sample"
    if mode not in ("sample", "greedy", "beam"):
        raise ConfigError(f"--mode {mode}: choose sample, greedy or beam")
    if mode == "greedy" and arguments.value(NUM):
        raise ConfigError("--num: --mode greedy has one text for a prompt; choose sample or beam")
    if mode != "beam" and arguments.value(BEAMS):
        raise ConfigError(f"--beams: --mode {mode} has none; choose --mode beam")
    exact = cli.number(arguments, EXACT, int, None, least=1)
    if exact is None and (arguments.value(BUDGET) or arguments.flag(VERIFY)):
        raise ConfigError("--budget and --verify belong to --exact K; add it")
    if exact is not None and mode != "sample":
        raise ConfigError(f"--exact: --mode {mode} has nothing to choose among; leave out --mode")
    budget = cli.number(arguments, BUDGET, int, exact, least=1)
    if exact is not None and budget is not None and budget < exact:
        raise ConfigError(f"--budget {budget}: --exact {exact} draws as many at once; give as many or more")
    settings = {
        "mode": mode,
        "num": cli.number(arguments, NUM, int, 1, least=1),
        "beams": cli.number(arguments, BEAMS, int, 8, least=1),
        "alphas": alphas,
        "max_new_tokens": cli.number(arguments, TOKENS, int, None, least=1),
        "seed": cli.number(arguments, SEED, int, 0),
        "choice": None if exact is None else (exact, budget),
        "verify": arguments.flag(VERIFY),
    }
    from engine.generation import read_prompts, write_texts

    prompts = read_prompts(arguments.value(PROMPT), arguments.value(INPUT))
    records = write_texts(runs, prompts, arguments.overrides, output=arguments.value(OUTPUT), **settings)
    if arguments.flag(cli.JSON):
        folders = [str(find_run(run).path) for run in runs]
        cli.print_json({"texts": records} | ({"run_dirs": folders} if len(runs) > 1 else {"run_dir": folders[0]}))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or "", OPTIONS, settings=SETTINGS))
