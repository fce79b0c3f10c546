"""Prompts of pipes and files: which lines are there, and what is read of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dinado.errors import DataError
from engine.line_stream import LineStream
from engine.prompt_input import open_prompts


@pytest.fixture
def pipe() -> Iterator[tuple[LineStream, Callable[[bytes], int]]]:
    """A stream of lines, and what writes to its other end; nothing closes it."""
    reads, writes = os.pipe()
    stream = LineStream(reads)
    yield stream, lambda content: os.write(writes, content) if content else os.close(writes)  # type: ignore[func-returns-value]
    if stream.ready() and stream.next_line() is None:
        return
    os.close(writes)


def test_only_whole_lines_are_ready(pipe: tuple[LineStream, Callable[[bytes], int]]) -> None:
    lines, write = pipe
    assert not lines.ready()
    write(b"half")
    assert not lines.ready()
    write(b" a line\n\nand")
    assert lines.ready() and lines.next_line() == b"half a line"
    assert lines.ready() and lines.next_line() == b"" and not lines.ready()
    write(b"")
    assert lines.ready() and lines.next_line() == b"and"
    assert lines.ready() and lines.next_line() is None


def test_a_slow_pipe_is_answered_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reads, encoding="utf-8"))
    source = open_prompts(None, None)
    os.write(writes, b"\n".join(b"%d" % i for i in range(5)) + b"\n\nhal")
    # A blank line and half a line are not waited for; two are left for the next batch.
    assert [prompt.text for prompt in source.take(3)] == ["0", "1", "2"]
    assert [prompt.text for prompt in source.take(3)] == ["3", "4"]
    os.write(writes, b"f\n")
    assert [(prompt.text, prompt.id) for prompt in source.take(3)] == [("half", "line 7")]
    os.close(writes)
    assert source.take(3) == []


def test_rows_of_a_pipe_keep_the_field_that_was_chosen(tmp_path: Path) -> None:
    fifo = tmp_path / "prompts"
    os.mkfifo(fifo)
    both = os.open(fifo, os.O_RDWR)
    try:
        source = open_prompts(None, str(fifo))
        assert source.live and source.total is None and source.field is None
        os.write(both, b'{"prompt": "a", "text": "mine"}\n')
        assert source.take(4)[0].data == {"text": "mine"} and source.field == "response"
        os.write(both, b'{"prompt": "b"}\n{"prompt": "c", "response": "mine"}\n')
        assert [prompt.text for prompt in source.take(4)] == ["b"]
        with pytest.raises(DataError, match="line 3 has a field `response`"):
            source.take(4)
    finally:
        os.close(both)
