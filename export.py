"""Export a trained run as a folder that other programs load.

python export.py runs/quickstart/<id> --out my-model                 a plain model for transformers, vLLM, llama.cpp
python export.py runs/quickstart/<id> --out my-adapter --as adapter  a LoRA run as an adapter of peft
python export.py runs/exact_world/<id> --out my-model --as controlled          an oracle network, for ControlledLM
python export.py runs/... --out my-model --push-to-hub you/my-model
python export.py runs/... --out my-model base.name=/new/place/model

merged is the default for a run that trained a policy, controlled for an oracle network. The folder has a model card
with the run's numbers. It is loaded again and compared with the run before it takes its name. Of the settings,
base.name and data.cache can be changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dinado.errors import ConfigError
from workbench import cli
from workbench.launching import check_alone
from workbench.run_folder import find_run

OUT = cli.Option("out", "The folder to write; new, or empty.", "FOLDER")
AS = cli.Option("as", "merged, adapter or controlled (default: the first that the run has).", "KIND")
DTYPE = cli.Option("dtype", "Storage of merged weights: float32 (default), bfloat16 or float16.", "TYPE")
PUSH = cli.Option("push-to-hub", "Upload the folder to the Hugging Face Hub, private if it is new there.", "REPO")
KINDS = ("merged", "adapter", "controlled")
DTYPES = ("float32", "bfloat16", "float16")
SETTINGS = ("base.name", "data.cache")
OPTIONS = [OUT, AS, DTYPE, PUSH, cli.JSON]


def main(arguments: cli.Arguments) -> int:
    """Restore the run, write the folder, and say how near it is to the run."""
    if len(arguments.positional) != 1:
        raise ConfigError("name one run, such as runs/quickstart/<id>; see --help")
    check_alone()
    out, kind, dtype = (arguments.value(option) for option in (OUT, AS, DTYPE))
    if out is None:
        raise ConfigError("--out is missing; name the folder to write")
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"--as {kind}: choose {', '.join(KINDS)}")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: choose {', '.join(DTYPES)}")
    run = arguments.positional[0]
    find_run(run)  # a mistake is told before torch is imported
    from engine.console import run_console
    from engine.exporting import export_run

    console = run_console(arguments.flag(cli.JSON))
    record = export_run(run, Path(out), kind, dtype, arguments.value(PUSH), arguments.overrides)
    difference = record["largest_difference"]
    console.print(f"{record['kind']} model in {record['folder']}", markup=False)
    console.print(f"its log-probabilities differ from the run's by at most {difference:.1e} nats")
    if record["url"]:
        console.print(f"uploaded to {record['url']}", markup=False)
    if arguments.flag(cli.JSON):
        cli.print_json(record)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or "", OPTIONS, settings=SETTINGS))
