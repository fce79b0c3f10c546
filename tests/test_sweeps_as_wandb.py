"""Sweeps against W&B's own client: when it gives a trial up, which files it takes, what its agent runs."""

from __future__ import annotations

import json
import os
import sys

import pytest
import yaml
from commands import process

from workbench.sweeping import definition
from workbench.sweeping.hyperband import Hyperband
from workbench.sweeping.trials import Maker

SHIPPED = sorted(path.stem for path in definition.SWEEPS.glob("*.yaml"))


# Hyperband


def test_bands():
    assert list(Hyperband(3.0, min_iter=3).bands(100)) == [3, 9, 27, 81]
    assert list(Hyperband(3.0, max_iter=27, s=2).bands(100)) == [3, 9]
    assert list(Hyperband(2.0, min_iter=1).bands(4)) == [1, 2]


HISTORIES = {
    "first": [10, 9, 8, 7, 6],
    "flat": [10, 10],
    "fast": [10, 8, 8],
    "late": [10, 9, 9.5, 9, 1],
    "young": [50],
    "worse": [12, 11, 11, 11],
}


@pytest.mark.parametrize("maximise", [False, True])
@pytest.mark.parametrize("rule", [{"min_iter": 1, "eta": 2}, {"max_iter": 9, "s": 2, "eta": 3}, {"min_iter": 2}])
def test_trials_are_given_up_as_wandb_would(rule, maximise):
    from sweeps import RunState, SweepRun
    from sweeps.hyperband_stopping import hyperband_stop_runs

    early = {"type": "hyperband", **rule}
    sign = -1 if maximise else 1
    histories = {name: [sign * value for value in values] for name, values in HISTORIES.items()}
    running = set(HISTORIES) - {"first"}
    runs = [
        SweepRun(
            name=name,
            state=RunState.running if name in running else RunState.finished,
            sampledHistory=[{"loss": value} for value in values],
        )
        for name, values in histories.items()
    ]
    goal = "maximize" if maximise else "minimize"
    body = {"method": "grid", "metric": {"name": "loss", "goal": goal}, "early_terminate": early, "parameters": {}}
    theirs = {run.name for run in hyperband_stop_runs(runs, body)}
    assert Hyperband.read(early).to_give_up(running, histories, maximise) == theirs


def test_giving_up_by_hand():
    rule = Hyperband(3.0, min_iter=1)
    histories = {"a": [0.1, 0.9], "b": [0.2, 0.5], "c": [0.1, 0.4], "d": [0.3]}
    assert rule.to_give_up("abcd", histories, True) == {"c"}  # the second best of three is the limit, d is too young
    assert rule.to_give_up("abcd", {"a": [0.1, 0.2]}, True) == set()


# W&B's own client


@pytest.mark.parametrize("name", SHIPPED)
def test_wandb_takes_the_files(name):
    """What `wandb sweep` does before it calls the server, and the schema of its local controller."""
    from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
    from wandb.sdk.launch.sweeps.utils import load_sweep_config
    from wandb.wandb_controller import _WandbController

    body = load_sweep_config(str(definition.SWEEPS / f"{name}.yaml"))
    assert body and _validate_config_and_fill_distribution(body)["parameters"]
    assert _WandbController._validate(object(), body) == ""
    assert "Malformed" in _WandbController._validate(object(), body | {"method": "none"})


@pytest.mark.parametrize("name", SHIPPED)
def test_a_wandb_agent_runs_the_command_that_a_trial_has(name, tmp_path, monkeypatch):
    """The agent's own code makes the command line and starts it; train.py shows what it understood."""
    from wandb.wandb_agent import Agent

    sweep = definition.read(name)
    settings = {parameter.key: parameter.samples()[-1] for parameter in sweep.parameters}
    body = yaml.safe_load(sweep.path.read_text())
    echo = tmp_path / "bin" / "python"
    echo.parent.mkdir()
    echo.write_text(
        f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], open({str(tmp_path / 'argv')!r}, 'w'))\n"
    )
    echo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{echo.parent}:{os.environ['PATH']}")
    for variable in ("WANDB_RUN_ID", "WANDB_DIR", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(variable, str(tmp_path))  # the agent sets them for good
    agent = Agent(api=None, queue=None, sweep_id="s")
    agent._sweep_command = body["command"]
    agent._command_run(
        {"run_id": "abc", "program": body["program"], "args": {k: {"value": v} for k, v in settings.items()}}
    )
    assert agent._run_processes["abc"].wait() == 0
    program, *words = json.loads((tmp_path / "argv").read_text())
    assert program == "train.py"
    assert [word.removeprefix("--") for word in words] == [
        word.removeprefix("--") for word in Maker(sweep).make(settings).words
    ]


def test_words_of_an_agent_run_through_the_command_line():
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    values = {
        "method": "dinado_soft",
        "optim.lr": 1e-05,
        "optim.micro_batch": None,
        "task.required": [1, 2],
        "network.taps": [0.5, 1],
        "trainer.progress": False,
        "logging.tags": ["a", "b c"],
    }
    args = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})["args"]
    result = process("train.py", "exact_world", *args, "--_wandb={'desc': None}", "--print-config")
    assert result.code == 0, result.err
    shown = yaml.safe_load(result.out)
    found = {key: shown[key.split(".")[0]][key.split(".")[1]] if "." in key else shown[key] for key in values}
    assert found == values | {"network.taps": [0.5, 1.0]}
