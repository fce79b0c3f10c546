"""Settings of the loggers: names and groups, what is refused, what is remembered, and names that methods share."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Command, process
from helpers import exact_gpt2_words

import train
from dinado.errors import ConfigError
from dinado.evaluation.judged_samples import JudgedSamples
from dinado.prompt import Prompt
from engine.loggers.code_version import code_settings, public
from engine.loggers.wandb_ledger import WandbLedger
from engine.loggers.wandb_page import WandbPage
from engine.loggers.wandb_samples import END, coloured, rows
from workbench.run_folder import RunFolder, find_run
from workbench.run_names import FAST_DEV_RUN, LONGEST, names
from workbench.settings import loader
from workbench.settings.conditions import wandb_mode
from workbench.settings.methods import METHODS


def named(*words: str) -> tuple[str, str]:
    config = loader.load("exact_world", [word for word in words if word != FAST_DEV_RUN]).config
    return names(config, "exact_world", words)


# Names


@pytest.mark.parametrize(
    ("words", "name", "group"),
    [
        ("", "dinado_soft seed=0", "dinado_soft"),
        ("method=nado", "nado seed=0", "nado"),
        ("optim.lr=3e-3 seed=2", "dinado_soft lr=0.003 seed=2", "dinado_soft lr=0.003"),
        ("seed=3 --optim.lr=0.0030", "dinado_soft lr=0.003 seed=3", "dinado_soft lr=0.003"),
        ("task.seed=4 rollouts.seed=5", "dinado_soft task.seed=4 seed=0 rollouts.seed=5", "dinado_soft task.seed=4"),
        ("network.taps=[0.5,1]", "dinado_soft network.taps=[0.5, 1.0] seed=0", "dinado_soft network.taps=[0.5, 1.0]"),
        ("oracle.name=task", "dinado_soft oracle.name=task seed=0", "dinado_soft oracle.name=task"),
        ("runs=x data.cache=y trainer.progress=false --logging.csv=true", "dinado_soft seed=0", "dinado_soft"),
        ("trainer.precision=bf16-mixed", "dinado_soft precision=bf16-mixed seed=0", "dinado_soft precision=bf16-mixed"),
        ("--_wandb={} seed=1", "dinado_soft seed=1", "dinado_soft"),
        (f"seed=1 {FAST_DEV_RUN}", "dinado_soft fast-dev-run seed=1", "dinado_soft fast-dev-run"),
    ],
)
def test_names_say_what_was_set(words: str, name: str, group: str) -> None:
    assert named("method=dinado_soft", *words.split()) == (name, f"exact_world {group}")


def test_long_names_stay_apart_and_keep_the_seed() -> None:
    words = [f"task.required=[{','.join(['3'] * 60)}]"]
    (one, group), (two, other) = named(*words, "seed=1"), named(*words, "optim.lr=1", "seed=1")
    assert len(one) == len(group) == LONGEST and one.endswith(" seed=1") and one != two and group != other
    assert named(*words, "seed=2")[1] == group


def page(tmp_path: Path, *words: str) -> dict[str, object]:
    """What W&B would be started with."""
    words = (f"runs={tmp_path}", "logging.wandb=offline", *words)
    loaded = loader.load("exact_world", words)
    return WandbPage(loaded.config, RunFolder.create(loaded, words))._wandb_init


def test_settings_win_over_the_environment_and_that_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    keys = ("project", "group", "name", "job_type")
    ours = page(tmp_path, "method=nado", "optim.lr=1e-2")
    assert [ours[key] for key in keys] == ["dinado", "exact_world nado lr=0.01", "nado lr=0.01 seed=0", "train"]
    environment = {"PROJECT": "p", "RUN_GROUP": "g", "NAME": "n", "JOB_TYPE": "j"}
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert [page(tmp_path)[key] for key in keys] == ["p", "g", "n", "j"]
    said = page(tmp_path, "logging.project=P", "logging.group=G", "logging.name=N")
    assert [said[key] for key in keys] == ["P", "G", "N", "j"]


def test_an_agent_of_a_sweep_hears_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = loader.load("exact_world").config
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_mode(config) == "off"
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert wandb_mode(config) == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode(config) == "offline"


# What is refused


@pytest.mark.parametrize(
    "word", ["project=p", "group=g", "name=n", "tags=[a]", "artifacts=[checkpoints]", "artifacts=[rollouts]"]
)
def test_settings_of_wandb_need_wandb(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    key = word.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"command line: logging\.{key}=.*: ignored, W&B is off; set logging.wandb="):
        loader.load("exact_world", [f"logging.{word}"])
    loader.load("exact_world", [f"logging.{word}", "logging.wandb=offline"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    loader.load("exact_world", [f"logging.{word}"])


def test_artifacts_are_of_two_kinds() -> None:
    with pytest.raises(ConfigError, match=r"logging.artifacts=\[rollouts, models\]: may list checkpoints and rollouts"):
        loader.load("exact_world", ["logging.wandb=offline", "logging.artifacts=[rollouts,models]"])


def test_an_experiment_file_may_name_artifacts_for_when_wandb_is_on(write: object, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    file = write("extends: exact_world\nlogging: {artifacts: [checkpoints]}\n")
    assert loader.load(file).config.logging.artifacts == ["checkpoints"]


def test_tensorboard_that_is_not_installed(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "engine.loggers.build_loggers.find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    result = command(train, "exact_world", *exact_gpt2_words(tmp_path, "logging.tensorboard=true"))
    line = result.err.splitlines()[-1]
    assert result.code == 2 and "logging.tensorboard=true" in line and line.endswith("pip install tensorboard")
    assert not (tmp_path / "cache").exists(), "nothing has been sampled for it"


def test_a_key_that_wandb_does_not_take_is_one_line_without_the_key(tmp_path: Path) -> None:
    words = exact_gpt2_words(tmp_path, "method=nado", "logging.wandb=online")
    result = process("train.py", "exact_world", *words, WANDB_MODE="online", WANDB_API_KEY="short-secret")
    line = result.err.splitlines()[-1]
    assert result.code == 2 and line.startswith("error: logging.wandb=online: ") and "secret" not in result.err
    assert not (tmp_path / "cache" / "rollouts").exists(), "nothing has been sampled for it"
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


# What is remembered


def test_what_was_given_is_not_given_again(tmp_path: Path) -> None:
    file = tmp_path / "wandb" / "given.jsonl"
    given = WandbLedger(file)
    assert given.note(3, ["b", "a"]) and not given.note(3, ["a", "b"])
    assert given.note(3, ["a"]) and given.note(4, ["a", "b"]) and given.rows == 3
    with file.open("a") as cut:
        cut.write('\n{"step": 5, "names": ["a')
    again = WandbLedger(file)
    assert again.rows == 3 and not again.note(4, ["b", "a"])
    assert again.note(5, ["a"]), "a line that is cut short was not given"
    assert not WandbLedger(file).note(5, ["a"]) and WandbLedger(file).rows == 4


def test_copies_of_settings_in_a_run_are_no_runs(tmp_path: Path) -> None:
    loaded = loader.load("exact_world", [f"runs={tmp_path}"])
    run = RunFolder.create(loaded).path
    copy = run / "wandb" / "run-x" / "files" / "settings"
    copy.mkdir(parents=True)
    (copy / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(Exception, match=f"the latest in it is {re.escape(str(run))}$"):
        find_run(tmp_path)


# What is told


@pytest.mark.parametrize(
    "url", ["https://secret@host/a.git", "https://secret:x-oauth-basic@host/a.git", "https://me:sec@ret@host/a.git"]
)
def test_what_opens_a_repository_is_not_told(tmp_path: Path, url: str) -> None:
    assert public(url) == "https://host/a.git"
    assert code_settings(tmp_path) == {"disable_git": True}
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["remote", "add", "o", url], [*author, "commit", "-qm", "x", "--allow-empty"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert code_settings(tmp_path)["git_remote_url"] == "", "no origin"
    subprocess.run(["git", "-C", str(tmp_path), "remote", "rename", "o", "origin"], check=True, capture_output=True)
    settings = code_settings(tmp_path)
    assert settings["git_remote_url"] == "https://host/a.git" and len(settings["git_commit"]) == 40


def test_tokens_are_coloured_and_escaped() -> None:
    html = coloured([("<b>", 0.0), ("", 0.3), (" & co", 0.5), ("", 1.0)])
    spans = re.findall(r'<span style="background:(#\w{6})" title="R (\S+)">(.*?)</span>', html)
    assert [(r, text) for _, r, text in spans] == [("0.00", "&lt;b&gt;"), ("0.50", " &amp; co"), ("1.00", END)]
    assert len({colour for colour, *_ in spans}) == 3 and "<b>" not in html
    assert "R 0.00 after the first token, 1.00 after the last" in html and coloured([]) == ""


def test_rows_of_the_sample_table() -> None:
    one = JudgedSamples([Prompt("a", "p")], ["t"], [True], [0.25], [0.0], [0.0], [1], [[1]], [[("t", 0.5)]])
    assert list(rows(one)) == [("p", "t", 0.25, coloured([("t", 0.5)]))]


# Names that all methods share


def test_every_method_logs_the_same_names(command: Command, tmp_path: Path) -> None:
    """So that the curves of any two lie over each other in one panel."""
    found: dict[str, SimpleNamespace] = {}
    size = {"network": ("network.width=16", "network.heads=2"), "lora": ("lora.r=2",)}
    for method in METHODS:
        trained = size.get(METHODS[method].default, ())
        words = exact_gpt2_words(tmp_path, f"method={method}", *trained, "optim.steps=2", "trainer.val_every=1")
        result = command(train, "exact_world", *words, "--json")
        assert result.code == 0, result.err
        records = RunFolder(Path(result.json["run_dir"])).metrics()
        steps = [record for record in records if "train/loss" in record][:-1]
        found[method] = SimpleNamespace(kinds=[sorted(record) for record in records], steps=steps)
    nado = found["nado"]
    assert {"reg/forward_consistency", "norm/log_beta_mean", "norm/log_ratio_l2", "norm/adapter_fro"} <= {
        *nado.kinds[1]
    }
    for method, other in found.items():
        if METHODS[method].predicts_r:
            assert other.kinds == nado.kinds, method
        else:  # it predicts no R, and what it has is called as elsewhere
            assert all(set(some) <= set(all_) for some, all_ in zip(other.kinds, nado.kinds, strict=True)), method
    hard, soft = (found[method].steps for method in ("dinado_hard", "dinado_soft"))
    # Its values telescope, so there is nothing to regularise; the term is there, and 0 but for rounding.
    assert all(abs(step["reg/forward_consistency"]) < 1e-5 for step in hard)
    assert soft[-1]["reg/forward_consistency"] > 1e-5


def test_the_page_of_logging_lists_every_setting_and_every_name(command: Command, tmp_path: Path) -> None:
    text = (loader.EXPERIMENTS.parent / "docs" / "logging.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(loader.load("exact_world").config.logging):
        assert f"`logging.{field.name}`" in text, field.name
    words = ("method=dinado_soft", "optim.norm_steps=1", "rollouts.rounds=2", "targets.weights=balance")
    result = command(train, "exact_world", *exact_gpt2_words(tmp_path, *words, "trainer.val_every=3"), "--json")
    records = RunFolder(Path(result.json["run_dir"])).metrics()
    assert json.dumps(records).count("norm/fit_ce") == 1
    listed = set(re.findall(r"`([\w/]+)`", text))
    for name in set().union(*records) - {"step"}:
        plain = re.sub(r"^(base|best_of_n)/", "val/", name)
        assert plain in listed or re.sub(r"_(low|high)$", "", plain) in listed, name
