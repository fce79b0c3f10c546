"""Layers, types, provenance and error messages of the configuration.

Longer than 300 lines because it is about one thing: one table of good and bad settings a kind of layer.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dinado.errors import ConfigError
from workbench.run_folder import RunFolder
from workbench.settings import loader, schema
from workbench.settings.config import Config
from workbench.settings.methods import METHODS


def fails(experiment: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loader.load(experiment, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Files and layers


@pytest.mark.parametrize("path", sorted(loader.EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_loads(path):
    own = ["task.path=prompts.jsonl", "oracle.function=oracles:mine"]  # of which there is no default
    loaded = loader.load(path.stem, own if path.stem == "own" else [])
    assert loaded.experiment == path.stem
    assert loaded.config.description and "\n" not in loaded.config.description
    assert loaded.provenance["description"] == path.name


def test_layers_and_provenance(write):
    write("optim: {lr: 1, steps: 1, warmup: 0.1}", "base")
    path = write("extends: base\noptim:\n  lr: 2\n  steps: 2")
    loaded = loader.load(path, ["optim.lr=3"])
    optim = loaded.config.optim
    assert (optim.lr, optim.steps, optim.warmup, optim.clip_norm) == (3, 2, 0.1, 1)
    sources = [Path(loaded.provenance[f"optim.{key}"]).name for key in ("lr", "steps", "warmup", "clip_norm")]
    assert sources == ["command line", "mine.yaml", "base.yaml", "default"]
    assert set(loaded.provenance) == set(schema.leaves())
    assert loaded.experiment == "mine"


def test_extends_goes_left_to_right_and_applies_a_shared_parent_once(write):
    write("seed: 1\nalpha: 1", "root")
    write("extends: root\nseed: 2", "left")
    write("extends: root\nalpha: 3", "right")
    config = loader.load(write("extends: [left, right]")).config
    assert (config.seed, config.alpha) == (2, 3)  # root, reached again through right, does not undo left


def test_extends_finds_shipped_experiments_and_relative_paths(write):
    write("seed: 5", "near")
    config = loader.load(write("extends: [exact_world, ./near.yaml]")).config
    assert (config.task.name, config.seed) == ("exact_world", 5)


def test_extends_loop(write):
    write("extends: second", "first")
    assert "extends loops: first -> second -> first" in fails(
        write("extends: first", "second").replace("second", "first")
    )


def test_missing_experiments(write):
    assert fails("quikstart") == "no experiment 'quikstart'; did you mean quickstart?"
    assert "there are" in fails("zzz") and "exact_world" in fails("zzz")
    assert fails("nowhere/a.yaml") == "no experiment file nowhere/a.yaml"
    assert "mine.yaml: extends=quikstart: no experiment 'quikstart'; did you mean quickstart?" in fails(
        write("extends: quikstart")
    )


def test_a_bare_name_is_a_shipped_experiment_even_if_a_file_here_has_it(write, monkeypatch, tmp_path):
    write("seed: 99", "quickstart")
    monkeypatch.chdir(tmp_path)
    assert loader.load("quickstart").config.seed != 99
    assert loader.load("quickstart.yaml").config.seed == 99


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "mine.yaml: line 2: seed occurs twice"),
        ("optim:\n  lr: 1\n  lr: 2", "mine.yaml: line 3: lr occurs twice"),
        ("- a", "mine.yaml: expected `key: value` lines, found a list"),
        ("word", "mine.yaml: expected `key: value` lines, found a str"),
        ("a: [1", "mine.yaml: line 1: "),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("? [1]\n: 2", "mine.yaml: line 1: a key must be a word"),
        ("extends: {a: 1}", "mine.yaml: extends takes a name or a list of names"),
        ("optim: 3", "mine.yaml: optim=3: optim is a section; set its keys, such as optim.name"),
        ("optim: []", "mine.yaml: optim=[]: optim is a section"),
        ("optimizer:\n  lr: 1", "mine.yaml: optimizer.lr=1: no such key; did you mean optim.lr?"),
        ("optim: {lr: {a: 1}}", "mine.yaml: optim.lr={'a': '1'}: expected float"),
        ("runs: ???", "no value for runs"),
    ],
)
def test_bad_files(write, text, message):
    assert message in fails(write(text))


BY_METHOD = """
optim: {lr: 1, steps: 7}
methods:
  nado: {optim: {lr: 2}, network.width: 8}
  sft: {seed: 3}
"""


def test_settings_of_one_method(write):
    path = write(BY_METHOD)
    assert loader.load(path, ["method=dinado_soft"]).config.optim.lr == 1
    loaded = loader.load(path, ["method=nado", "optim.steps=9"])
    assert (loaded.config.optim.lr, loaded.config.optim.steps, loaded.config.network.width) == (2, 9, 8)
    assert loaded.provenance["optim.lr"].endswith("mine.yaml, methods: nado")
    assert loaded.config.seed == 0 and loader.load(path, ["method=sft"]).config.seed == 3
    assert loader.load(path, ["method=nado", "optim.lr=5"]).config.optim.lr == 5


def test_settings_of_a_method_are_inherited_and_may_be_overridden(write):
    write(BY_METHOD, "parent")
    child = write("extends: ./parent.yaml\nmethod: nado\nnetwork: {width: 16}\nmethods: {nado: {seed: 9}}")
    config = loader.load(child).config
    assert (config.optim.lr, config.network.width, config.seed) == (2, 16, 9)
    assert "methods" not in yaml.safe_load(loader.to_yaml(loader.load(child)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: {nadoo: {seed: 1}}", "mine.yaml, methods: nadoo: no such method; did you mean nado?"),
        ("methods: {nado: {optim: {rl: 1}}}", "mine.yaml, methods: nado: optim.rl: no such key here; did you mean"),
        ("methods: {nado: {method: sft}}", "methods: nado: method: no such key here"),
        ("methods: {nado: 3}", "mine.yaml, methods: nado: expected `key: value` lines"),
        ("methods: [nado]", "mine.yaml: methods: expected settings under the name of a method"),
        ("method: nado\nmethods: {nado: {optim: {lr: x}}}", "methods: nado: optim.lr=x: expected float"),
    ],
)
def test_bad_settings_of_a_method(write, text, message):
    assert message in fails(write(text))


def test_bad_bytes(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "mine.yaml: cannot be read" in fails(str(tmp_path / "mine.yaml"))


def test_empty_files_and_sections_set_nothing(write):
    defaults = Config()
    assert loader.load(write("")).config == defaults
    assert loader.load(write("optim:\n  # lr: 3\n")).config == defaults


# Values


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=3e-4", 3e-4),
        ("--optim.lr=3e-4", 3e-4),
        ("optim.lr=1", 1.0),
        ("--optim.batch-size=32", 32),
        ("optim.batch_size=32", 32),
        ("optim.steps=1e3", 1000),
        ("optim.steps=2.0", 2),
        ("optim.steps=1_000", 1000),
        ("task.template={words} = {words}?", "{words} = {words}?"),
        ("base.system_prompt=Answer: in #short", "Answer: in #short"),
        ("base.system_prompt='quoted'", "quoted"),
        ("base.system_prompt='a' or 'b'", "'a' or 'b'"),
        ("base.system_prompt=None", None),
        ("base.system_prompt=null", None),
        ('base.system_prompt="None"', "None"),
        ("base.system_prompt=", ""),
        ("base.system_prompt=${runs}", "${runs}"),
        ("logging.name=007", "007"),
        ("logging.name=1e3", "1e3"),
        ("logging.name=yes", "yes"),
        ("logging.tags=[a, 'b c', 'd=e', no, 1]", ["a", "b c", "d=e", "no", "1"]),
        ("logging.tags=[]", []),
        ("logging.wandb=off", "off"),
        ("optim.norm_lr=None", None),
        ("optim.norm_lr=0.1", 0.1),
        ("optim.micro_batch=8", 8),
        ("optim.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("lora.targets=q_proj", "q_proj"),
        ("lora.targets=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("trainer.progress=False", False),
        ("--trainer.progress", True),
    ],
)
def test_override_values(override, value):
    key = re.split("=", override.removeprefix("--"))[0].replace("-", "_")
    needs = ["task.name=commongen"] if key.startswith("task.") else []
    needs += ["method=dinado_soft"] if key == "optim.norm_lr" else []
    loaded = loader.load("quickstart", [*needs, override])
    found = schema.get(loaded.config, key)
    assert found == value and type(found) is type(value)
    assert loaded.provenance[key] == "command line"


def test_file_values_mean_what_the_field_says(write):
    path = write(
        "logging: {wandb: off, name: 007, tags: [yes, 1]}\ntrainer: {progress: no}\noptim: {steps: 1e3, norm-lr: ~}\n"
        "task: {name: exact_world, required: [1, 2], ends_with: 2}\nbase: {system_prompt: 'null'}\n"
    )
    config = loader.load(path).config
    assert (config.logging.wandb, config.logging.name, config.logging.tags) == ("off", "007", ["yes", "1"])
    assert config.trainer.progress is False and config.optim.steps == 1000 and config.optim.norm_lr is None
    assert config.task.required == [1, 2] and config.task.ends_with == 2
    assert config.base.system_prompt == "null"


def test_later_override_wins_and_wandb_key_is_ignored():
    config = loader.load("quickstart", ["seed=1", "--_wandb={'a': 1}", "seed=2"]).config
    assert config.seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=1", "command line: lr=1: no such key; did you mean optim.lr?"),
        ("optim.learning-rate=1", "command line: optim.learning_rate=1: no such key"),
        ("rollouts.top_pp=0.9", "no such key; did you mean rollouts.top_p?"),
        ("top_pp=0.9", "no such key; did you mean rollouts.top_p?"),
        ("optim.sede=1", "no such key; did you mean"),
        ("bse.name=x", "no such key; did you mean base.name?"),
        ("metod=nado", "no such key; did you mean method?"),
        ("optim.seed=1", "no such key; did you mean seed or task.seed or rollouts.seed?"),
        ("xyzzy=1", "command line: xyzzy=1: no such key"),
        ("optim.lr.x=1", "command line: optim.lr.x=1: no such key"),
        ("optim.lr=fast", "command line: optim.lr=fast: expected float"),
        ("optim.lr=None", "command line: optim.lr=null: expected float"),
        ("--optim.lr", "command line: optim.lr=true: expected float"),
        ("optim.steps=1.5", "command line: optim.steps=1.5: expected int"),
        ("optim.steps=1e400", "expected int"),
        ("optim.betas=[0.9]", "command line: optim.betas=['0.9']: expected tuple[float, float]"),
        ("optim.betas=0.9", "expected tuple[float, float]"),
        ("optim.betas=[0.9", "command line: optim.betas=[0.9: line 1:"),
        ("task.required=[a]", "expected list[int]"),
        ("trainer.progress=maybe", "expected bool"),
        (
            "method=dinado-sft",
            f"expected {' | '.join(METHODS)}; did you mean dinado_soft?",
        ),
        ("optim={lr: 1}", "optim is a section"),
    ],
)
def test_bad_overrides(override, message):
    assert message in fails("quickstart", override)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
@example(text="${runs}")
@example(text="\\${runs}")
@example(text="\\\\${a")
@example(text="null")
@example(text=" off ")
@example(text="a: b # c")
def test_any_text_survives_writing_and_reading(text, tmp_path):
    loaded = loader.load("quickstart")
    loaded.config.base.system_prompt = text
    loaded.config.logging.tags = [text]
    (tmp_path / "again.yaml").write_text(loader.to_yaml(loaded), encoding="utf-8")
    assert loader.load(str(tmp_path / "again.yaml")).config == loaded.config


def test_schema_types_are_all_supported(write):
    """Every field's default goes through YAML and comes back equal and of the same type."""
    before = loader.load("quickstart")
    after = loader.load(write(loader.to_yaml(before)))
    for key in schema.leaves():
        old, new = schema.get(before.config, key), schema.get(after.config, key)
        assert new == old and type(new) is type(old), key


def test_every_field_has_help():
    assert [key for key, leaf in schema.leaves().items() if not leaf.help] == []
    assert [name for name, text in schema.sections().items() if not text or text.startswith(f"{name}(")] == []


def test_printed_configuration_reloads_with_inherited_settings_of_another_task(write):
    """A parent's settings for the exact world are not complained about after a change of task, nor printed."""
    parent = write("task: {name: exact_world, vocab_size: 9, required: [1]}", "parent")
    child = loader.load(parent, ["task.name=brief"])
    assert child.config.task.vocab_size == 12 and child.provenance["task.vocab_size"] == "default"
    assert loader.load(write(loader.to_yaml(child))).config == child.config


def test_run_folder_gives_back_its_configuration(tmp_path):
    loaded = loader.load("exact_world", ["task.vocab_size=9", "seed=3", f"runs={tmp_path}"])
    folder = RunFolder.create(loaded, ["task.vocab_size=9"])
    again = loader.from_run_folder(folder.path, ["optim.steps=7"])
    assert again.experiment == "exact_world"
    assert again.config.optim.steps == 7 and again.provenance["optim.steps"] == "command line"
    assert dataclasses.replace(again.config, optim=loaded.config.optim) == loaded.config
    with pytest.raises(ConfigError, match="not a run folder"):
        loader.from_run_folder(tmp_path)


def test_listing_survives_a_broken_file(tmp_path, monkeypatch):
    shutil.copy(loader.EXPERIMENTS / "quickstart.yaml", tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [")
    monkeypatch.setattr(loader, "EXPERIMENTS", tmp_path)
    found = loader.experiments()
    assert found["broken"].startswith("unreadable: ") and found["quickstart"].startswith("Quickstart")


def test_rendered_yaml_is_plain_yaml():
    body = yaml.safe_load(loader.to_yaml(loader.load("quickstart"), dim=False))
    assert body["optim"]["lr"] == loader.load("quickstart").config.optim.lr and body["logging"]["wandb"] == "off"
