"""The checklists of docs/extending.md: read from the page, and carried out in a copy of the project."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

PAGE = ROOT / "docs" / "extending.md"
COPIED = ("dinado", "lightning_modules", "datamodules", "engine", "workbench", "experiments")
CHARACTERS = ("<eos>", "<unk>", *"0123456789Ab +.!?")

SECTION = re.compile(r"^## (?:A|An) (method|oracle|parameterisation|task)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
STEP = re.compile(r"^\d\. .*?^   ```python\n   # (\S+?)(?:, (.*?))?\n(.*?)^   ```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^[A-Z]+: dict\[str, \w+\] = \{\n", re.MULTILINE)
TABLE_END = "\n    )\n}\n"


@dataclass(frozen=True)
class Step:
    """One step: code for a place in a file.

    Attributes:
        file: path in the project.
        place: where it goes in a file that exists; empty for a new file.
        code: without the line that says where it goes.
    """

    file: str
    place: str
    code: str

    def carry_out(self, project: Path) -> None:
        """Write the file, or insert the code where the page says."""
        path = project / self.file
        if not self.place:
            assert not path.exists(), f"{self.file} is not new"
            path.write_text(self.code, encoding="utf-8")
            return
        text = path.read_text(encoding="utf-8")
        assert len(TABLE.findall(text)) == 1 and text.count(TABLE_END) == 1, f"{self.file} has one table"
        if self.place == "one more row":
            row = textwrap.indent(self.code.rstrip("\n") + ",", 8 * " ")
            text = text.replace(TABLE_END, f"\n{row}{TABLE_END}")
        elif self.place == "above the table":
            lines = self.code.splitlines(keepends=True)
            imports = [line for line in lines if line.startswith(("import ", "from "))]
            rest = "".join(line for line in lines if line not in imports).strip("\n")
            begin = TABLE.search(text)
            assert begin is not None
            text = "\n\n\n".join((text[: begin.start()].rstrip("\n"), rest, text[begin.start() :]))
            last = re.findall(r"^(?:import|from) .*\n", text, re.MULTILINE)[-1]
            text = text.replace(last, last + "".join(f"\n{line}" for line in imports), 1)
        else:
            assert self.place == "at the end", f"{self.place}: the page explains no such place"
            text = text.rstrip("\n") + "\n" + textwrap.indent(self.code, 4 * " ")
        path.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Checklist:
    """A section of the page.

    Attributes:
        kind: what is added.
        steps: in order.
        commands: words of the commands that use it, and of the one that checks it last, without ``python``.
    """

    kind: str
    steps: tuple[Step, ...]
    commands: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        """The name of what is added, which is what the contract tests are asked for."""
        return self.commands[-1][-1]


def checklists() -> dict[str, Checklist]:
    """Return the checklists of the page."""
    found = {}
    for kind, body in SECTION.findall(PAGE.read_text(encoding="utf-8")):
        steps = tuple(Step(file, place, textwrap.dedent(code)) for file, place, code in STEP.findall(body))
        (block,) = COMMANDS.findall(body)
        words = [shlex.split(line) for line in block.splitlines()]
        assert all(command[0] == "python" for command in words)
        assert words[-1][1:4] == ["-m", "pytest", "tests/test_contracts.py"]
        assert len(steps) == body.count("```python"), "every block of code is a step"
        found[kind] = Checklist(kind, steps, tuple(tuple(command[1:]) for command in words))
    return found


def copy_project(folder: Path, *, tests: bool = False) -> Path:
    """Copy the code and its experiments, compiled files included, with or without the tests."""
    for name in (*COPIED, *(("tests",) if tests else ())):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "docs").mkdir()
    for page in (ROOT / "docs").glob("*.md"):
        shutil.copy2(page, folder / "docs" / page.name)
    for script in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy2(script, folder / script.name)
    return folder


def contents(project: Path) -> dict[str, str]:
    """Return a hash of every source file."""
    files = (path for path in project.rglob("*") if path.suffix in (".py", ".yaml", ".toml"))
    return {str(path.relative_to(project)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def carry_out(project: Path, steps: Iterable[Step]) -> tuple[set[str], set[str]]:
    """Carry out some steps; return the files that are new, and those that have changed."""
    before = contents(project)
    for step in steps:
        step.carry_out(project)
    after = contents(project)
    assert before.keys() <= after.keys()
    return after.keys() - before.keys(), {name for name in before if before[name] != after[name]}


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters, unknown ones included: it reads any prompt."""
    backend = Tokenizer(WordLevel({name: index for index, name in enumerate(CHARACTERS)}, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<eos>",
        eos_token="<eos>",
        pad_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
