"""The commands a user types, run in a process of their own, and what came of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from conftest import ROOT


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr."""
        (line,) = self.err.splitlines()
        assert self.code == 2 and line.startswith("error: "), self.err
        return line

    @property
    def json(self) -> dict:
        """The last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


def process(script: str, *words: str, stdin: str = "", **environment: str) -> Result:
    """A command in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words],
        input=stdin,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=300,
    )
    return Result(done.returncode, done.stdout, done.stderr)


Command = Callable[..., Result]
