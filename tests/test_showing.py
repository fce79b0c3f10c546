"""What is shown of a run is not ours: prompts, texts, paths. None of it is markup, and none of it can fail a run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command, process
from conftest import ROOT
from rich.console import Console
from small_run import save_base, save_prompts, small_words

import engine.session
import train
from dinado.evaluation.judged_samples import JudgedSamples
from dinado.evaluation.result_table import print_samples, print_table
from dinado.prompt import Prompt
from workbench.plain_console import PlainConsole
from workbench.plain_files import json_line
from workbench.run_status import status
from workbench.sweeping.ranking import Ranked, table

NASTY = ["[bold]loud[/bold]", "[link=x", ":smile:", "\\[x]", "[/b]", "[red]é 狗"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose folder has a name full of markup."""
    return save_base(tmp_path_factory.mktemp("own") / "[/x]" / "model")


@pytest.mark.parametrize("text", NASTY)
def test_no_text_is_markup(text: str) -> None:
    file = io.StringIO()
    # A library's user may bring a console with markup.
    console = Console(file=file, width=200)
    samples = JudgedSamples([Prompt("0", text)], [text], [True], [1.0], [0.0], [0.0], [1], [[1]], [[]])
    print_samples(console, samples, samples, 1, text)
    print_table(console, {text: {"val/success": 0.5}}, text)
    assert file.getvalue().count(text) == 6  # heading, prompt, two texts; title, label


@pytest.mark.parametrize("text", NASTY)
def test_the_console_of_a_run_prints_as_it_is(text: str) -> None:
    console = PlainConsole(file=io.StringIO(), piped_width=300)
    console.print(f"run runs/{text}")
    row = Ranked(settings={text: text, "seed": 1}, mean=1.0, low=0.0, high=2.0, trials=1, finished=1, stopped=0)
    other = Ranked(settings={text: "b", "seed": 1}, mean=1.0, low=0.0, high=2.0, trials=1, finished=1, stopped=0)
    console.print(table([row, other], "val/success", text))
    assert f"runs/{text}" in console.file.getvalue() and console.file.getvalue().count(text) == 4  # type: ignore[attr-defined]


def test_a_run_full_of_brackets_on_a_terminal_of_another_encoding(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[b] here"
    folder.mkdir()
    save_prompts(folder / "prompts.jsonl", [f"{text} {number}" for number, text in enumerate(NASTY)])
    words = small_words(folder, f"base.name={base}", "eval.show=6")
    environment = {"PYTHONPATH": str(folder), "PYTHONIOENCODING": "ascii"}
    result = process("train.py", *words, **environment)
    assert result.code == 0, result.err
    (run,) = folder.glob("runs/quickstart/*")
    assert status(run) == "finished"
    assert "[/b]" in result.out and "[red]? ?" in result.out and f"run {run}: " in result.out


def test_a_run_is_finished_before_anything_is_shown(
    base: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fails(*_: object) -> None:
        seen.extend(status(run) for run in tmp_path.glob("runs/*/*"))
        raise RuntimeError("no terminal")

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(engine.session, "show_results", fails)
    result = command(train, *small_words(tmp_path, f"base.name={base}"), "--json")
    assert result.code == 0 and seen == ["finished"] and "no terminal" in result.err
    assert status(result.json["run_dir"]) == "finished"


def test_a_reader_that_leaves_does_not_stop_a_console(tmp_path: Path) -> None:
    code = (
        "from workbench import cli; from workbench.plain_console import PlainConsole\n"
        "def main(arguments):\n    console = PlainConsole()\n"
        "    for _ in range(20000): console.print('line')\n"
        f"    open({str(tmp_path / 'done')!r}, 'w').close()\n"
        "raise SystemExit(cli.run(main, 'usage', argv=[]))"
    )
    command = ["bash", "-o", "pipefail", "-c", f'{sys.executable} -c "$CODE" | head -1']
    done = subprocess.run(command, cwd=ROOT, env={"CODE": code, "PATH": "/usr/bin:/bin"}, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"line\n") and (tmp_path / "done").exists(), done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    command = ["bash", "-c", f"{sys.executable} {ROOT}/train.py {closed}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_json_is_whole_in_every_encoding() -> None:
    text = "é 狗 \udc80"
    code = f"from workbench import cli; cli.print_json({{'text': {text!r}}})"
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONIOENCODING": encoding, "PATH": "/usr/bin:/bin"},
            capture_output=True,
        )
        assert json.loads(done.stdout.decode(encoding))["text"] == text, done.stderr
    assert json.loads(json_line({"text": text}).encode("utf-8"))["text"] == text
