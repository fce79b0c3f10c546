"""The command line: what argv means, how errors read, which exit code they have, what help and JSON look like."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import pytest
import torch
import yaml

from dinado.errors import ConfigError, OracleError, UserError
from workbench import cli, help
from workbench.cli import DRY_RUN, FAST_DEV_RUN, JSON, PRINT_CONFIG, RESUME, Option
from workbench.settings import loader, schema

JOBS = Option("jobs", "Trials at once.", "N")
OPTIONS = (PRINT_CONFIG, DRY_RUN, FAST_DEV_RUN, RESUME, JSON, JOBS)
USAGE = "usage: python train.py <experiment> [key=value ...]"


def train(arguments: cli.Arguments) -> None:
    """A stand-in for an entry script."""
    if not arguments.positional:
        print(help.listing())
        return
    loaded = loader.load(arguments.positional[0], arguments.overrides)
    if arguments.flag(PRINT_CONFIG):
        help.print_config(loaded)


def run(*argv: str, main=train, settings: bool = True) -> int:
    return cli.run(main, USAGE, OPTIONS, settings, argv)


# Argv


def test_argv_is_sorted():
    argv = "quickstart method=nado --optim.batch-size=8 --dry-run --trainer.progress --resume runs/a=b/c --jobs=3"
    found = cli.parse([*argv.split(), "runs/x=1", "-h"], OPTIONS)
    assert found.positional == ["quickstart", "runs/x=1"]
    assert found.overrides == ["method=nado", "optim.batch-size=8", "trainer.progress=true"]
    assert found.flag(DRY_RUN) and not found.flag(JSON)
    assert found.value(RESUME) == "runs/a=b/c" and found.value(JOBS) == "3" and found.value(JSON) is None
    assert found.help == ""


@pytest.mark.parametrize("spelling", ["--fast-dev-run", "--fast_dev_run"])
def test_hyphens_and_underscores_in_options(spelling):
    assert cli.parse([spelling], OPTIONS).flag(FAST_DEV_RUN)


@pytest.mark.parametrize(
    ("argv", "section", "positional"),
    [
        (["--help"], "", []),
        (["--help", "optim"], "optim", []),
        (["--help=optim"], "optim", []),
        (["--help", "--json"], "", []),
        (["--help", "seed=1"], "", []),
        (["quickstart", "--help"], "", ["quickstart"]),
    ],
)
def test_help_takes_an_optional_section(argv, section, positional):
    found = cli.parse(argv, OPTIONS)
    assert (found.help, found.positional) == (section, positional)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--dryrun", "unknown option --dryrun; did you mean --dry-run?"),
        ("--optim.lr", "unknown option --optim.lr; did you mean optim.lr=...?"),
        ("--lr", "unknown option --lr; did you mean optim.lr?"),
        ("--xyzzy", "unknown option --xyzzy"),
        ("-x", "unknown option -x"),
        ("--resume", "--resume needs a value: --resume RUN"),
        ("--resume --json", "--resume needs a value"),
        ("--json=1", "--json takes no value, got '1'"),
    ],
)
def test_bad_options(argv, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        cli.parse(argv.split(), OPTIONS)


def test_scripts_without_settings_refuse_them():
    with pytest.raises(
        ConfigError, match=re.escape("seed=1: this command takes no settings; there are --jobs, --help")
    ):
        cli.parse(["seed=1"], [JOBS], settings=False)
    with pytest.raises(ConfigError, match=r"unknown option --job; did you mean --jobs\?"):
        cli.parse(["--job"], [JOBS], settings=False)


# Errors and exit codes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("quikstart", "error: no experiment 'quikstart'; did you mean quickstart?"),
        ("quickstart lr=1", "error: command line: lr=1: no such key; did you mean optim.lr?"),
        ("quickstart optim.lr=fast", "error: command line: optim.lr=fast: expected float"),
        ("quickstart rollouts.top_p=0.9", "set targets.weights=importance"),
        ("quickstart --dryrun", "did you mean --dry-run?"),
        ("--help optm", "error: --help optm: no such section; did you mean optim?"),
        ("--help lr", "error: --help lr: no such section; did you mean optim.lr?"),
        ("--help xyzzy", "there are experiment, base, task"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(argv, message, capsys):
    assert run(*argv.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_exit_codes(capsys):
    def fail(error: BaseException):
        def main(arguments: cli.Arguments) -> None:
            raise error

        return main

    class Preempted(UserError):
        exit_code = 75

    assert run(main=lambda arguments: None) == 0
    assert run(main=lambda arguments: 3) == 3
    assert run(main=fail(Preempted("later"))) == 75
    assert run(main=fail(OracleError("two\n  lines"))) == 2
    assert capsys.readouterr().err.endswith("error: two lines\n")
    assert run(main=fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(ZeroDivisionError):  # our own mistakes keep their traceback
        run(main=fail(ZeroDivisionError()))


def test_a_reader_that_leaves_early_is_no_error():
    code = (
        "import sys; from workbench import cli\n"
        "def main(arguments):\n    for _ in range(100000): print('line')\n"
        "sys.exit(cli.run(main, 'usage', argv=[]))"
    )
    command = f'{sys.executable} -c "$CODE" | head -1'
    root = str(loader.EXPERIMENTS.parent)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=root,
        env={"CODE": code, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "line\n", "")


# Help, listing, printed configuration


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")


def test_help_shows_every_setting_within_the_terminal(narrow, capsys):
    assert run("--help") == 0
    page = capsys.readouterr().out
    assert page.startswith(USAGE)
    words = set(page.split())
    assert set(schema.leaves()) <= words
    assert {f"--{option.name}" for option in (*OPTIONS, cli.HELP)} <= words
    assert [line for line in page.splitlines() if len(line) > 72] == []


def test_help_of_a_section_and_of_a_key(narrow, capsys):
    assert run("--help", "optim") == 0
    page = capsys.readouterr().out
    assert "optim.lr" in page and "rollouts.top_p" not in page and USAGE not in page
    columns = {len(match[0]) for line in page.splitlines() if (match := re.match(r"  optim\.\w+\s+", line))}
    assert len(columns) == 1  # aligned
    assert run("--help", "optim.lr") == 0
    assert capsys.readouterr().out == "  optim.lr  Peak learning rate. [float; 0.001]\n"


def test_help_without_settings(capsys):
    assert run("--help", settings=False) == 0
    page = capsys.readouterr().out
    assert "--jobs N" in page and "optim.lr" not in page


def test_listing(narrow, capsys):
    assert run() == 0
    page = capsys.readouterr().out
    for name, description in loader.experiments().items():
        assert name in page and description.split()[0] in page


def test_print_config_reloads(tmp_path, capsys):
    assert run("exact_world", "optim.lr=0.5", "--print-config") == 0
    page = capsys.readouterr().out
    assert "\x1b" not in page
    assert re.search(r"^  lr: 0\.5 +# command line$", page, re.MULTILINE)
    assert re.search(r"^  name: exact_world +# exact_world\.yaml$", page, re.MULTILINE)
    assert re.search(r"^seed: 0 +# default$", page, re.MULTILINE)
    (tmp_path / "again.yaml").write_text(page)
    assert loader.load(str(tmp_path / "again.yaml")).config == loader.load("exact_world", ["optim.lr=0.5"]).config


def test_terminals_get_dim_comments(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run("exact_world", "--print-config") == 0
    page = capsys.readouterr().out
    assert "\x1b[2m# default\x1b[0m" in page
    assert yaml.safe_load(re.sub(r"\x1b\[\d*m", "", page))["task"]["name"] == "exact_world"


# Small runs


@pytest.mark.parametrize(
    "overrides", ["", "trainer.devices=3 optim.batch_size=96 optim.micro_batch=8", "data.train_prompts=0"]
)
@pytest.mark.parametrize("experiment", ["quickstart", "exact_world", "exact_gpt2"])
def test_fast_dev_run_is_small_and_valid(experiment, overrides, tmp_path):
    loaded = loader.load(experiment, [*overrides.split(), "eval.best_of=0"])
    loader.shrink(loaded)
    config = loaded.config
    assert 0 < config.data.train_prompts <= 4 and config.optim.steps <= 2 and config.eval.best_of == 0
    assert config.optim.batch_size == 2 * config.trainer.devices <= config.rollouts.per_prompt  # enough rows for a step
    assert config.targets.positives_share == 0  # and none of so few may be accepted
    assert loaded.provenance["optim.steps"] == "--fast-dev-run" and loaded.provenance["optim.lr"] != "--fast-dev-run"
    (tmp_path / "small.yaml").write_text(loader.to_yaml(loaded))
    assert loader.load(str(tmp_path / "small.yaml")).config == config


# JSON


def test_json_is_the_last_line(capsys):
    print("before")
    cli.print_json(
        {
            "nan": math.nan,
            "inf": [math.inf, -math.inf, 1.5],
            "tensor": torch.tensor(2.0),
            "many": torch.tensor([1.0, math.nan]),
            "nested": {"text": "naïve\n", 3: None, "yes": True},
        }
    )
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line, parse_constant=pytest.fail) == {
        "nan": None,
        "inf": [None, None, 1.5],
        "tensor": 2.0,
        "many": [1.0, None],
        "nested": {"text": "naïve\n", "3": None, "yes": True},
    }
