"""Write with a trained model, or with a base.

python generate.py runs/quickstart/<id> --prompt "Write one short sentence about a lighthouse."
python generate.py runs/quickstart/<id> --prompt "..." --num 4 --mode beam --alpha 1.5
cat prompts.txt | python generate.py runs/quickstart/<id>            one prompt a line
python generate.py runs/quickstart/<id> --input prompts.jsonl --output texts.jsonl
python generate.py runs/quickstart/<id> base.name=/new/place/model --prompt "..."
python generate.py runs/quickstart/<id> --input prompts.jsonl --exact 16 --verify
python generate.py runs/quickstart/<id> runs/own/<id> --alpha 1 0.5 --prompt "..."
python generate.py runs/quickstart/<id> --prompt "..." --explain --html texts.html

Several runs on one base decode together, with p * R_1^alpha_1 * R_2^alpha_2: each was trained on its own oracle, and
their texts obey all of them. One --alpha is the strength of all, otherwise there is one for each.

With --exact K every text is chosen among K of the model by its weight p C / q: independent texts (--decoder sir),
particles (smc), or the first that is accepted with probability min(1, p C / (beta q)) (qrs). The run's oracle judges,
of several the product of their oracles, and reads the fields of the row: what is written comes from q* in the limit. A
text that the oracle rejects is written only where all that were drawn are rejected, and never with --verify.

Prompts are read as they come: a program at the other end of a pipe gets its answer before it sends the next prompt. A
line of the output holds the fields of its input row and `text`; where rows have a `text` of their own, they keep it and
the new text is `response`. A command that was stopped goes on with --continue, and its file is then the one that it
would have been. Of the settings, base.name, data.cache and trainer.accelerator can be changed.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from dinado.errors import ConfigError
from engine.decoding_settings import Decoding
from workbench import cli
from workbench.launching import check_alone
from workbench.run_folder import find_run

PROMPT = cli.Option("prompt", "The prompt; without it and without --input, prompts are read from stdin.", "TEXT")
INPUT = cli.Option("input", "JSON lines, each with a `prompt`; other fields are kept.", "FILE")
OUTPUT = cli.Option("output", "Write JSON lines here, as they come, instead of text to stdout.", "FILE")
CONTINUE = cli.Option("continue", "Go on with an --output FILE that a stopped command has left, or begin it.")
OVERWRITE = cli.Option("overwrite", "Replace an --output FILE that holds texts already.")
NUM = cli.Option("num", "Texts for each prompt (default 1).", "N")
MODE = cli.Option("mode", "sample (default), greedy or beam.", "MODE")
BEAMS = cli.Option("beams", "Beams of --mode beam (default 8).", "N")
ALPHA = cli.Option("alpha", "Control strength, p * R^alpha; of several runs one each (default: the run's).", "X", True)
TOKENS = cli.Option("max-new-tokens", "Budget of a text (default: the run's).", "N")
SEED = cli.Option("seed", "Seed of the samples (default 0).", "N")
EXACT = cli.Option("exact", "Choose every text among K in proportion to p C / q.", "K")
DECODER = cli.Option("decoder", "How --exact chooses: sir (default), smc, or qrs, which needs --beta.", "NAME")
ESS = cli.Option("ess", "Share of the particles of smc below which they are resampled (default 0.5).", "X")
BETA = cli.Option("beta", "The dial of qrs, an upper bound of p C / q to be exact.", "X")
BUDGET = cli.Option("budget", "Most texts to draw for one with --exact, while none is accepted (default: K).", "N")
VERIFY = cli.Option("verify", "With --exact, write no text that the oracle rejects.")
EXPLAIN = cli.Option("explain", "Show both models' likeliest tokens, KL, R and norm at every token of the texts.")
HTML = cli.Option("html", "With --explain, write the texts as one HTML page as well.", "FILE")
SETTINGS = ("base.name", "data.cache", "trainer.accelerator")
OPTIONS = [
    *(PROMPT, INPUT, OUTPUT, CONTINUE, OVERWRITE),
    *(NUM, MODE, BEAMS, ALPHA, TOKENS, SEED),
    *(EXACT, DECODER, ESS, BETA, BUDGET, VERIFY),
    *(EXPLAIN, HTML, cli.JSON),
]


def main(arguments: cli.Arguments) -> int:
    """Read prompts, restore the runs, write texts."""
    if not arguments.positional:
        raise ConfigError("name one run, such as runs/quickstart/<id>, or several of one base; see --help")
    check_alone()
    folders = [find_run(run) for run in arguments.positional]
    trained = [folder.trained.resolve() for folder in folders]
    if twice := [run for run, file in zip(arguments.positional, trained, strict=True) if trained.count(file) > 1]:
        raise ConfigError(f"{twice[0]} is named twice; name it once, with --alpha 2 for twice the strength")
    decoding = decoding_of(arguments)
    go_on, overwrite = arguments.flag(CONTINUE), arguments.flag(OVERWRITE)
    if (go_on or overwrite) and not arguments.value(OUTPUT):
        raise ConfigError("--continue and --overwrite belong to --output FILE; add it")
    if go_on and overwrite:
        raise ConfigError("--continue keeps what the file holds and --overwrite replaces it; give one of them")
    if go_on and arguments.flag(cli.JSON):
        raise ConfigError("--json prints the texts of this command alone; read --output instead, and leave it out")
    page = arguments.value(HTML)
    if page and not decoding.explain:
        raise ConfigError("--html belongs to --explain; add it")
    if page and go_on:
        raise ConfigError("--html shows the texts of this command alone; leave out --continue")
    if decoding.explain and len(folders) > 1:
        raise ConfigError("--explain shows what one run does; name one, or leave it out")
    from engine.explained_output import ExplainedOutput
    from engine.prompt_input import open_prompts
    from engine.text_writing import write_texts
    from workbench.report.output import writable

    view = ExplainedOutput(folders[0], decoding, writable(page) if page else None) if decoding.explain else None
    source = open_prompts(arguments.value(PROMPT), arguments.value(INPUT))
    records: list[dict[str, Any]] = []

    def keep(record: dict[str, Any]) -> None:
        if arguments.flag(cli.JSON):
            records.append(record)
        if view is not None:
            view.keep(record)

    write_texts(
        folders,
        source,
        decoding,
        arguments.overrides,
        output=arguments.value(OUTPUT),
        go_on=go_on,
        overwrite=overwrite,
        as_text=view.as_text if view is not None and not arguments.flag(cli.JSON) else None,
        each_record=keep,
    )
    if view is not None:
        view.write_page()
    if arguments.flag(cli.JSON):
        paths = [str(folder.path) for folder in folders]
        cli.print_json({"texts": records} | ({"run_dirs": paths} if len(paths) > 1 else {"run_dir": paths[0]}))
    return 0


def decoding_of(arguments: cli.Arguments) -> Decoding:
    """Read how texts are decoded.

    Raises:
        ConfigError: options do not go together.
    """
    mode = cli.choice(arguments, MODE, ("sample", "greedy", "beam"))
    if mode == "greedy" and arguments.value(NUM):
        raise ConfigError("--num: --mode greedy has one text for a prompt; choose sample or beam")
    if mode != "beam" and arguments.value(BEAMS):
        raise ConfigError(f"--beams: --mode {mode} has none; choose --mode beam")
    exact = cli.number(arguments, EXACT, int, None, least=1)
    if exact is None and any(option.name in arguments.options for option in (DECODER, ESS, BETA, BUDGET, VERIFY)):
        raise ConfigError("--decoder, --ess, --beta, --budget and --verify belong to --exact K; add it")
    if exact is not None and mode != "sample":
        raise ConfigError(f"--exact: --mode {mode} has nothing to choose among; leave out --mode")
    decoder = cli.choice(arguments, DECODER, ("sir", "smc", "qrs"))
    ess, beta = cli.number(arguments, ESS, float, None, least=0.0), cli.number(arguments, BETA, float, None, least=0.0)
    if ess is not None and (decoder != "smc" or ess > 1):
        raise ConfigError(f"--ess {ess:g}: it belongs to --decoder smc, and lies between 0 and 1")
    if (beta is not None) != (decoder == "qrs") or beta == 0:
        raise ConfigError(
            "--decoder qrs needs --beta X above 0, and no other decoder has one; evaluate.py RUN --exact K --decoder "
            "qrs shows what values cost"
        )
    budget = cli.number(arguments, BUDGET, int, exact, least=1)
    if exact is not None and budget is not None and budget < exact:
        raise ConfigError(f"--budget {budget}: --exact {exact} draws as many at once; give as many or more")
    alphas = cli.numbers(arguments, ALPHA, float, least=0.0)
    runs = len(arguments.positional)
    if alphas is not None and len(alphas) not in (1, runs):
        raise ConfigError(
            f"--alpha: {len(alphas)} values for {runs} run{'s' if runs > 1 else ''}; give one for each, or one for all"
        )
    return Decoding(
        mode=mode,
        num=cli.number(arguments, NUM, int, 1, least=1),
        beams=cli.number(arguments, BEAMS, int, 8, least=1),
        alphas=None if alphas is None else tuple(alphas),
        max_new_tokens=cli.number(arguments, TOKENS, int, None, least=1),
        seed=cli.number(arguments, SEED, int, 0),
        exact=exact,
        decoder=decoder,
        budget=budget,
        ess=0.5 if ess is None else ess,
        log_beta=None if beta is None else math.log(beta),
        verify=arguments.flag(VERIFY),
        explain=arguments.flag(EXPLAIN),
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or "", OPTIONS, settings=SETTINGS))
