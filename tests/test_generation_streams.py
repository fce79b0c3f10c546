"""``generate.py`` on streams: prompts as they come, texts at once, and files that a stopped command goes on with."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Command
from conftest import ROOT
from helpers import exact_gpt2_words
from small_run import save_prompts

import generate
import train
from engine import text_writing
from engine.prompt_input import open_prompts
from engine.record_output import MARK
from workbench import cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_RUN_ID", "good")
        words = exact_gpt2_words(folder, "method=dinado_soft", "optim.steps=1")
        assert cli.run(train.main, "", train.OPTIONS, True, ["exact_world", *words]) == 0
    return str(folder / "runs" / "exact_world" / "good")


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Make stdin a pipe that holds some bytes and ends."""
    reads, writes = os.pipe()
    os.write(writes, content)
    os.close(writes)
    monkeypatch.setattr(sys, "stdin", os.fdopen(reads, encoding="utf-8"))


# Lines and prompts


def test_a_file_is_checked_before_anything_is_written(
    run: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = save_prompts(tmp_path / "in.jsonl", ["1"] * 40), tmp_path / "out.jsonl"
    source = open_prompts(None, str(file))
    assert (source.total, source.field, source.live) == (40, "text", False)
    file.write_text(file.read_text() + '{"prompt": 3}\n')
    monkeypatch.setattr(text_writing, "Generation", None)
    assert (
        "line 41: field 'prompt' must be a text"
        in command(generate, run, "--input", str(file), "--output", str(out)).error
    )
    assert not out.exists()


def test_a_later_line_that_is_invalid_keeps_the_texts_before_it(
    run: str, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    piped(monkeypatch, b"1\n2\n\xff\xfe\n3\n")
    result = command(generate, run)
    assert len(result.out.splitlines()) == 2
    assert result.error == "error: stdin, line 3 is not UTF-8 at byte 0"
    piped(monkeypatch, b"1\n2\n\xff\xfe\n3\n")
    out = tmp_path / "out.jsonl"
    result = command(generate, run, "--output", str(out))
    assert result.error.endswith("keeps the 2 texts written so far; the same command with --continue goes on")
    assert len(out.read_text().splitlines()) == 2
    piped(monkeypatch, b"1\n2\n3\n")
    assert command(generate, run, "--output", str(out), "--continue").code == 0
    assert len(out.read_text().splitlines()) == 3


def test_a_prompt_that_is_too_long_names_its_line(run: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_writing, "BATCH", 2)
    piped(monkeypatch, b"1\n2\n" + b"1 " * 2000 + b"\n")
    result = command(generate, run)
    assert len(result.out.splitlines()) == 2 and "prompt 'line 3' has 2000 tokens" in result.error


def test_no_prompt(run: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, b"\n \n")
    assert "there is no prompt to answer" in command(generate, run).error


# Files that are there


WAYS = {
    "sample": ["--num", "2"],
    "beam": ["--num", "2", "--mode", "beam", "--beams", "3"],
    "exact": ["--exact", "4", "--budget", "8", "--num", "2"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_continued_equals_one_that_was_not_stopped(
    way: str, run: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_writing, "BATCH", 3)
    rows = [{"prompt": f"{1 + i % 4} {1 + i % 3}", "number": i} for i in range(8)]
    source, out = save_prompts(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    words = [run, "--input", str(source), "--output", str(out), "--max-new-tokens", "4", *WAYS[way]]
    mark = Path(f"{out}{MARK}")
    begun = {}
    finish = text_writing.RecordWriter.finish
    with monkeypatch.context() as patch:
        patch.setattr(
            text_writing.RecordWriter, "finish", lambda *given: begun.update(mark=mark.read_text()) or finish(*given)
        )
        assert command(generate, *words).code == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 16 and not mark.exists(), "the mark is gone with the last text"
    for kept, part in ((0, 3), (1, 0), (5, 9), (6, 0), (7, 1), (15, 2), (16, 0)):
        out.write_bytes(b"".join(lines[:kept]) + (lines[kept][:part] if part else b""))
        mark.write_text(begun["mark"])
        assert "go on with --continue, or start again with --overwrite" in command(generate, *words).error
        assert command(generate, *words, "--continue").code == 0
        assert out.read_bytes() == whole and not mark.exists(), (kept, part)
    assert command(generate, *words, "--continue").code == 0, "a finished file needs nothing"
    assert out.read_bytes() == whole


@pytest.fixture
def stopped(run: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    """The words of a command, and its file with two texts of four, as after Ctrl-C."""
    source, out = save_prompts(tmp_path / "in.jsonl", ["1", "2", "3", "4"]), tmp_path / "out.jsonl"
    words = [run, "--input", str(source), "--output", str(out)]
    write = text_writing.RecordWriter.write

    def interrupt(writer: text_writing.RecordWriter, *given: object) -> object:
        if writer.written == 2:
            raise KeyboardInterrupt
        return write(writer, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(text_writing.RecordWriter, "write", interrupt)
        result = command(generate, *words)
    assert result.code == 130
    assert result.err.splitlines() == [
        f"{out} keeps the 2 texts written so far; the same command with --continue goes on",
        "interrupted",
    ]
    return words, out


def test_what_has_changed_is_one_line(stopped: tuple[list[str], Path], command: Command, tmp_path: Path) -> None:
    words, out = stopped
    before = out.read_text()
    for more, says in (
        (["--seed", "3"], "was begun with --seed 0, and here it is 3"),
        (["--num", "2"], "was begun with --num 1, and here it is 2"),
        (["--exact", "4"], "was begun with --exact None, and here it is 4"),
    ):
        assert says in command(generate, *words, "--continue", *more).error
    save_prompts(tmp_path / "in.jsonl", ["1", "3", "2", "4"])
    assert "line 2 of" in (said := command(generate, *words, "--continue").error) and "line 2 is another prompt" in said
    save_prompts(tmp_path / "in.jsonl", ["1"])
    assert "holds more texts than those of the 1 prompts" in command(generate, *words, "--continue").error
    save_prompts(tmp_path / "in.jsonl", ["1", "2", "3", "4"])
    for content, says in (("{", "is damaged"), ("[]", "is damaged")):
        kept = (mark := Path(f"{out}{MARK}")).read_text()
        mark.write_text(content)
        assert says in command(generate, *words, "--continue").error
        mark.write_text(kept)
    assert out.read_text() == before
    out.write_text("no record\n")
    assert "line 1 of" in (said := command(generate, *words, "--continue").error) and "no record of generate.py" in said


def test_other_weights_do_not_continue(
    stopped: tuple[list[str], Path], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_writing, "file_digest", lambda path: "f" * 64)
    assert "was begun with weights" in command(generate, *stopped[0], "--continue").error


def test_a_finished_file_is_not_extended(stopped: tuple[list[str], Path], command: Command, tmp_path: Path) -> None:
    words, out = stopped
    assert command(generate, *words, "--continue").code == 0
    whole = out.read_text()
    save_prompts(tmp_path / "in.jsonl", ["1", "2", "3", "4", "1"])
    assert "is finished and has 4 texts, and the input goes on" in command(generate, *words, "--continue").error
    assert "holds texts already; name another file, or start again" in command(generate, *words).error
    assert out.read_text() == whole
    assert command(generate, *words, "--overwrite").code == 0
    assert out.read_text().startswith(whole) and len(out.read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--continue"], "belong to --output FILE"),
        (["--overwrite"], "belong to --output FILE"),
        (["--output", "x", "--continue", "--overwrite"], "give one of them"),
        (["--output", "x", "--continue", "--json"], "leave it out"),
        (["--output", "/dev/null", "--continue"], "no file that can be read again"),
    ],
)
def test_mistakes(run: str, command: Command, words: list[str], says: str) -> None:
    assert says in command(generate, run, "--prompt", "1", *words).error


def test_a_field_that_records_need_is_refused(run: str, command: Command, tmp_path: Path) -> None:
    source = save_prompts(tmp_path / "in.jsonl", [{"prompt": "1", "score": 2}])
    words = [run, "--input", str(source), "--output", str(tmp_path / "out")]
    assert "line 1 has a field `score`, which records need" in command(generate, *words, "--exact", "2").error
    assert command(generate, *words).code == 0 and json.loads((tmp_path / "out").read_text())["score"] == 2


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with text_writing._progress(True, 40) as show:
        show(16)
    assert "16/40" in shown.getvalue()
    with text_writing._progress(False, 40) as show:
        show(17)
    assert "17/40" not in shown.getvalue()


# Processes


def start(*words: str, **given: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "generate.py"), *words]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, text=True, **pipes, **given)  # type: ignore[call-overload,no-any-return]


def test_a_conversation_through_pipes(run: str) -> None:
    running = start(run)
    assert running.stdin and running.stdout
    try:
        for prompt in ("1", "2"):
            running.stdin.write(f"{prompt}\n")
            running.stdin.flush()
            assert running.stdout.readline().endswith("\n"), "the answer comes before the next prompt"
        out, err = running.communicate("3\n", timeout=100)
    finally:
        running.kill()
    assert (
        running.returncode == 0 and out.count("\n") == 1 and not [line for line in err.splitlines() if "rror" in line]
    )


def test_signals_keep_the_file_and_closed_pipes_are_quiet(run: str, tmp_path: Path) -> None:
    source, out = save_prompts(tmp_path / "in.jsonl", ["1", "2", "3 1"] * 10_000), tmp_path / "out.jsonl"
    words = [run, "--input", str(source)]
    to_file, to_pipe = start(*words, "--output", str(out)), start(*words)
    assert to_pipe.stdout and to_pipe.stderr
    try:
        deadline = time.monotonic() + 100
        while not out.exists() or out.stat().st_size < 1000:
            assert to_file.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        to_file.send_signal(signal.SIGTERM)
        said = to_file.communicate(timeout=100)[1]
        assert to_file.returncode == 75 and "the same command with --continue goes on" in said
        records = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(records) > 10 and Path(f"{out}{MARK}").exists()
        assert to_pipe.stdout.readline()
        to_pipe.stdout.close()
        assert to_pipe.wait(timeout=100) == 0
        said = to_pipe.stderr.read()
        assert "Broken" not in said and "Traceback" not in said and "rror" not in said
    finally:
        to_file.kill()
        to_pipe.kill()
    shutil.rmtree(tmp_path)
