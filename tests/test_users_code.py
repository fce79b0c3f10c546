"""Code of the user's inside a run: state in oracles, changed helpers, programs that end themselves, lost processes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import Command, process
from small_run import save_base, small_words
from store_case import Contains, make_store

import train
from dinado.bases.causal import BaseLM
from dinado.errors import OracleError, StoreError
from dinado.oracles import Oracle, load_oracle
from dinado.oracles.fingerprint import digest
from dinado.oracles.imported_code import imported_files
from dinado.prompt import Prompt
from dinado.rollouts.collect import collect
from engine.agreed import agree
from workbench.run_folder import RunFolder
from workbench.run_status import status

REPOSITORY = Path(__file__).parent.parent
STATEFUL = """
import sys
import torch
from dinado.oracles import Oracle

def judged(texts):
    return ["a" in text.lower() for text in texts]

class Lazy(Oracle):
    def __init__(self):
        self.model = None
    def score(self, prompts, texts):
        self.model = self.model or torch.nn.Linear(2, 2)
        return judged(texts)

class Counts(Oracle):
    def __init__(self):
        self.calls, self.cache = 0, {}
    def score(self, prompts, texts):
        self.calls += 1
        return [self.cache.setdefault(text, verdict) for text, verdict in zip(texts, judged(texts))]

class Words:
    def __init__(self, words):
        self.words, self.me = set(words), self

class HasSet(Oracle):
    def __init__(self):
        self.words = Words(["alpha", "beta", "gamma", "delta", "eps", "zeta"])
    def score(self, prompts, texts):
        return judged(texts)

class Unsorted(Oracle):
    def __init__(self):
        self.words = list({"alpha", "beta", "gamma", "delta", "eps", "zeta"})
    def score(self, prompts, texts):
        return judged(texts)

def memo(prompts, texts):
    for prompt in prompts:
        prompt.data["seen"] = prompt.data.get("seen", 0) + 1
    prompts.clear()
    return judged(texts)

def exits(prompts, texts):
    sys.exit(0)

class Exits(Oracle):
    def __init__(self):
        raise SystemExit
    def score(self, prompts, texts):
        return judged(texts)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the user's modules, imported afresh."""
    (tmp_path / "stateful.py").write_text(STATEFUL)
    (tmp_path / "ends.py").write_text(
        "import sys\ndef score(prompts, texts): return [1.0 for _ in texts]\nsys.exit()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("stateful", "ends", "judge", "helper", "pack", "pack.inner", "pack.deep"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


# Ends


@pytest.mark.parametrize("function", ["ends:score", "stateful:Exits"])
def test_a_module_that_ends_the_program_is_an_error(here: Path, function: str) -> None:
    with pytest.raises(OracleError, match=f"{function}.*SystemExit.*ends a program"):
        load_oracle(function)


def test_an_oracle_that_ends_the_program_fails_the_run(here: Path, model: Path, command: Command) -> None:
    result = command(train, *small_words(here, f"base.name={model}", "oracle.function=stateful:exits"))
    assert result.code == 2 and "stateful:exits failed on prompt" in result.err.splitlines()[-1], result.err
    (run,) = here.glob("runs/*/*")
    assert status(run).startswith("failed")


def test_an_exit_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), RunFolder(tmp_path):
        raise SystemExit(0)
    assert status(tmp_path).startswith("failed")


# State


def test_the_fingerprint_is_taken_before_the_first_use(here: Path) -> None:
    for name in ("Lazy", "Counts", "HasSet"):
        used, fresh = load_oracle(f"stateful:{name}"), load_oracle(f"stateful:{name}")
        used([Prompt("0", "")], ["a"])
        assert used.fingerprint == fresh.fingerprint == (~(~used)).fingerprint, name
        assert pickle.loads(pickle.dumps(used)).fingerprint == used.fingerprint


@pytest.mark.parametrize("name", ["Counts", "memo"])
def test_a_stateful_oracle_runs_and_finds_its_verdicts_again(
    here: Path, model: Path, command: Command, name: str
) -> None:
    words = small_words(here, f"base.name={model}", f"oracle.function=stateful:{name}")
    verdicts = []
    for _ in range(2):
        result = command(train, *words)
        assert result.code == 0, result.err
        verdicts.append(set(here.glob("cache/rollouts/*/round-000/scores-*")))
    assert len(verdicts[0]) >= 2 and verdicts[0] == verdicts[1], "train and val, once each"


def test_an_oracle_writes_into_copies() -> None:
    class Spoils(Oracle):
        def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
            for prompt in prompts:
                prompt.data["list"].append(1)  # type: ignore[attr-defined]
                prompt.data["new"] = 1  # type: ignore[index]
            prompts.clear()  # type: ignore[attr-defined]
            texts.reverse()  # type: ignore[attr-defined]
            return [1.0] * len(texts)

    prompt, texts = Prompt("0", "", {"list": []}), ["a", "b"]
    prompts = [prompt, prompt]
    (Spoils() & ~Spoils())(prompts, texts)
    assert prompt.data == {"list": []} and prompts == [prompt, prompt] and texts == ["a", "b"]


IDENTITIES = """
from dinado.oracles import load_oracle
print(load_oracle("stateful:HasSet").fingerprint, load_oracle("stateful:Lazy").fingerprint)
"""


def test_sets_inside_objects_have_one_order(here: Path) -> None:
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-B", "-c", IDENTITIES]
        found.add(subprocess.run(command, cwd=here, env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1


class Node:
    """An object with whatever attributes it is given."""

    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)


class Slots:
    __slots__ = ("a",)

    def __init__(self, a: object) -> None:
        self.a = a


def test_objects_are_told_apart_by_their_content() -> None:
    loop = Node(a=1)
    loop.me = loop  # type: ignore[attr-defined]
    values = [Node(a={1, 2}), Node(a={1, 3}), Node(b={1, 2}), Node(a=Node(a=1)), loop, Slots(1), Slots({2}), Node()]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(Node(a={"x", "y"}, b=1)) == digest(Node(b=1, a={"y", "x"}))
    for value in (Node(a=threading.Lock()), Node(a=(i for i in range(3)))):
        with pytest.raises(OracleError, match="cannot fingerprint"):
            digest(value)


def test_an_oracle_without_identity_is_refused_before_the_sampling(here: Path, model: Path, command: Command) -> None:
    (here / "mine.py").write_text(
        STATEFUL + "\nimport threading\nclass Locked(Counts):\n    lock = None\n"
        "    def __init__(self):\n        self.lock = threading.Lock()\n"
    )
    sys.modules.pop("mine", None)
    words = small_words(here, f"base.name={model}", "oracle.function=mine:Locked")
    assert "cannot fingerprint a lock" in command(train, *words, "--dry-run").error


# Helpers


def fingerprint_of(function: str) -> str:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("judge", "helper", "pack")]:
        del sys.modules[name]
    return load_oracle(function).fingerprint


@pytest.mark.parametrize("kind", ["function", "class"])
def test_every_helper_is_part_of_the_identity(here: Path, kind: str) -> None:
    (here / "pack").mkdir()
    files = {
        "judge.py": "import json, torch\nfrom helper import accept\nfrom dinado.oracles import Oracle\n"
        "def function(prompts, texts):\n    import pack.inner\n    return [accept(t) for t in texts]\n"
        "class Class(Oracle):\n    def score(self, prompts, texts): return function(prompts, texts)\n",
        "helper.py": "accept = lambda text: 1.0\n",
        "pack/__init__.py": "LIMIT = 1\n",
        "pack/inner.py": "from . import deep\nfrom .deep import X\n",
        "pack/deep.py": "X = 1\nimport judge\n",
        "unused.py": "",
    }
    for name, text in files.items():
        (here / name).write_text(text)
    function = f"judge:{kind.title() if kind == 'class' else kind}"
    known = {fingerprint_of(function)}
    for name in files:
        (here / name).write_text(files[name] + "# changed\n")
        known.add(fingerprint_of(function))
        (here / name).write_text(files[name])
    assert len(known) == len(files), "one for each, and none for the file that nobody imports"
    assert [name for name, _ in imported_files("judge")] == ["helper", "pack", "pack.deep", "pack.inner"]


def test_installed_packages_and_this_project_are_no_helpers() -> None:
    assert imported_files("torch") == [] and imported_files("dinado.oracles.lexical") == []
    assert imported_files("there_is_no_such_module") == []


# Other processes


def test_waiting_has_an_end(base: BaseLM, cache: Path) -> None:
    store = make_store(cache, base)
    collect(base, Contains(), store, rank=0, world_size=2)
    with pytest.raises(StoreError, match=r"block 1 belongs to another process.*fingerprint"):
        store.wait(poll_seconds=0.01, limit_seconds=0.05)
    collect(base, Contains(), store, rank=1, world_size=2)
    store.wait(limit_seconds=0.05)


def test_ranks_take_the_fingerprint_of_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, oracles = RunFolder(tmp_path), [Contains("a"), Contains("b")]
    alone = [oracle.fingerprint for oracle in oracles]
    agree(oracles[0], folder)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "agreed.json").write_text(json.dumps({"launch": "an earlier one", "oracle": "x"}))
    with pytest.raises(OracleError, match="process 0 has written no fingerprint"):
        agree(oracles[1], folder, limit_seconds=0.0)
    for rank, oracle in enumerate(oracles):
        monkeypatch.setenv("RANK", str(rank))
        agree(oracle, folder)
    assert [oracle.fingerprint for oracle in oracles] == [alone[0]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HasSet", "Unsorted", "Lazy"])
def test_two_processes_find_each_others_verdicts(here: Path, model: Path, name: str) -> None:
    words = small_words(here, f"base.name={model}", f"oracle.function=stateful:{name}", "rollouts.block_size=1")
    result = process("train.py", *words, "trainer.devices=2", PYTHONPATH=str(here))
    assert result.code == 0, result.err
