"""The checklists of docs/extending.md, carried out as they stand in a copy of the project, and each step left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from extending_case import CHARACTERS, PAGE, Checklist, carry_out, character_tokenizer, checklists, copy_project
from forked_commands import Commands
from helpers import exact_gpt2_words, tiny_llama

from workbench.run_folder import status

KINDS = ("method", "oracle", "parameterisation", "task")
HELP = {"method": "method", "oracle": "oracle.name", "parameterisation": "parameters", "task": "task.name"}
LISTS = checklists()
STEPS = [(kind, index) for kind in KINDS for index in range(len(LISTS[kind].steps))]
COMMANDS = [(kind, words) for kind in KINDS for words in LISTS[kind].commands if words[0] == "train.py"]
SMALL = [
    "rollouts.max_new_tokens=6",
    "rollouts.truncated=score",
    "targets.positives_share=0",
    "objective.lookahead.weight=0",
    "trainer.accelerator=cpu",
    "trainer.progress=false",
]


@pytest.fixture(scope="module")
def run() -> Iterator[Commands]:
    with Commands() as commands:
        yield commands


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama over characters, which reads any prompt."""
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(len(CHARACTERS), max_position_embeddings=512).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which all four checklists have been carried out, the files that each touched counted on the way."""
    folder = copy_project(tmp_path_factory.mktemp("project"), tests=True)
    for kind in KINDS:
        new, changed = carry_out(folder, LISTS[kind].steps)
        assert (len(new), len(changed)) == (1, 1), f"{kind}: {new} are new and {changed} have changed"
        assert changed == {step.file for step in LISTS[kind].steps if step.place}
    return folder


def small(words: tuple[str, ...], folder: Path, base: Path) -> list[str]:
    """Return the words of a command of the page, with a small base and all that it writes in a folder."""
    _, experiment, *settings = words
    if experiment == "exact_gpt2":
        return [*words, *exact_gpt2_words(folder)]
    assert experiment == "quickstart" and "--fast-dev-run" in settings
    return [*words, f"base.name={base}", f"data.cache={folder}/cache", f"runs={folder}/runs", *SMALL]


def test_the_page_has_a_checklist_for_each_table() -> None:
    assert tuple(sorted(LISTS)) == tuple(sorted(KINDS))
    assert {kind: len(LISTS[kind].steps) for kind in KINDS} == dict.fromkeys(KINDS, 3)
    assert [line for line in PAGE.read_text(encoding="utf-8").splitlines() if len(line) > 100] == []


def test_the_new_code_is_in_style(project: Path, run: Commands) -> None:
    pytest.importorskip("ruff")
    files = sorted({step.file for kind in KINDS for step in LISTS[kind].steps})
    assert run(project, ["-m", "ruff", "check", "--quiet", "--fix", "--select", "I", *files])[0] == 0
    for words in (["check", *files], ["format", "--check", *files]):
        code, out, err = run(project, ["-m", "ruff", *words])
        assert code == 0, out + err


@pytest.mark.parametrize("kind", KINDS)
def test_help_lists_the_name_and_the_settings(project: Path, run: Commands, kind: str) -> None:
    names = [line.split()[0] for line in run(project, ["train.py", "--help", HELP[kind]])[1].splitlines()[1:]]
    assert LISTS[kind].name in names
    for key in own_settings(LISTS[kind]):
        code, out, err = run(project, ["train.py", "--help", key])
        assert code == 0 and key in out, err


@pytest.mark.parametrize(("kind", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value[2])
def test_the_command_of_the_page_runs(
    project: Path, base: Path, run: Commands, tmp_path: Path, kind: str, words: tuple[str, ...]
) -> None:
    code, out, err = run(project, small(words, tmp_path, base))
    assert code == 0, out + err
    (folder,) = tmp_path.glob("runs/*/*")
    assert status(folder) == "finished"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for word in words:
        if "=" in word:
            key, _, value = word.partition("=")
            assert str(at(config, key)).lower() == value, "the run records its settings"
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for record in metrics for name in record}
    assert {"train/loss", "val/success"} <= names
    if kind == "method":
        assert {"norm/log_ratio_l2", "val/kl_to_optimum"} <= names and "val/r_calibration_error" not in names
        code, out, err = run(project, ["evaluate.py", str(folder), "--json"])
        assert code == 0, err
        assert json.loads(out.splitlines()[-1])["val/success"] == metrics[-1]["val/success"]


def test_the_contract_tests_find_all_of_them(project: Path, run: Commands) -> None:
    """One run for the commands of all sections; a name of a section is what its command selects by."""
    for words in (words for kind in KINDS for words in LISTS[kind].commands if words[1] == "workbench.settings.tables"):
        assert run(project, words)[0] == 0
    words = " or ".join(LISTS[kind].name for kind in KINDS)
    files = ["tests/test_contracts.py", "tests/test_imports.py", "tests/test_tables.py"]
    rules = "test_arrows or test_no_circle or test_names_and_lengths or test_methods_page"
    code, out, err = run(
        project, ["-m", "pytest", *files, "-vv", "-p", "no:cacheprovider", "-k", f"{words} or {rules}"]
    )
    assert code == 0, out + err
    for kind in KINDS:
        passed = re.findall(rf"::test_{kind}\S*{LISTS[kind].name}\S* PASSED", out)
        assert len(passed) >= 3, f"{LISTS[kind].commands[-1]} checks next to nothing"


@pytest.mark.parametrize(("kind", "left_out"), STEPS)
def test_a_step_left_out_is_one_clear_error(
    base: Path, run: Commands, tmp_path: Path, kind: str, left_out: int
) -> None:
    """Nothing is half known: the command of the page stops, and the last line names what is missing."""
    steps = list(LISTS[kind].steps)
    missing = steps.pop(left_out)
    folder = copy_project(tmp_path / "project")
    carry_out(folder, steps)
    words = small(LISTS[kind].commands[0], tmp_path, base)
    code, out, err = run(folder, ["train.py", *words[1:], "--dry-run"])
    last = err.splitlines()[-1]
    if missing.place == "above the table":  # Python's own error, on every command: the row names a class
        (name,) = re.findall(r"^class (\w+):", missing.code, re.MULTILINE)
        assert code == 1 and last.startswith(f"NameError: name '{name}' is not defined"), err
        return
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1, out + err
    if not missing.place:
        assert missing.file.removesuffix(".py").replace("/", ".") in last
    elif missing.place == "one more row":
        assert f"{HELP[kind]}={LISTS[kind].name}" in last
    else:
        (key,) = own_settings(LISTS[kind])
        assert key in last


def own_settings(checklist: Checklist) -> list[str]:
    """Return the keys of the settings that a checklist adds: those of its command that no other row has."""
    fields = {name for step in checklist.steps if step.place for name in re.findall(r"(\w+): .*setting\(", step.code)}
    keys = [word.partition("=")[0] for words in checklist.commands for word in words if "=" in word]
    return [key for key in keys if key.rpartition(".")[2] in fields]


def at(config: dict, key: str) -> object:
    """Return the value of a dotted key."""
    value: object = config
    for name in key.split("."):
        value = value[name]  # type: ignore[index]
    return value
