"""Oracles across processes: fingerprints, pickling, and a user's own code."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from datamodules.tasks.configured_oracle import configured_oracle
from dinado.errors import OracleError
from dinado.oracles import (
    LengthOracle,
    LexicalOracle,
    Oracle,
    RegexOracle,
    TokenOracle,
    load_oracle,
    token_dfa,
)
from dinado.prompt import Prompt
from workbench.settings.oracles import OracleConfig

REPOSITORY = Path(__file__).parent.parent
PROMPTS = [Prompt(f"p{i}", f"request {i}") for i in range(2)]


def scores_of(oracle: Oracle, texts: Sequence[str]) -> list[float]:
    return oracle([PROMPTS[0]] * len(texts), texts).tolist()


# ---------------------------------------------------------------- fingerprints and pickling

BUILT_IN: dict[str, Callable[[], Oracle]] = {
    "lexical": LexicalOracle,
    "lexical words": lambda: LexicalOracle(["dog", "run"]),
    "regex": lambda: RegexOracle("dog"),
    "regex other": lambda: RegexOracle("dogs"),
    "regex case": lambda: RegexOracle("dog", ignore_case=False),
    "length": lambda: LengthOracle(1, 5),
    "length max": lambda: LengthOracle(1),
    "tokens": lambda: TokenOracle(token_dfa(4, required=[1])),
    "tokens other": lambda: TokenOracle(token_dfa(4, required=[2])),
    "tokens size": lambda: TokenOracle(token_dfa(5, required=[1])),
    "not": lambda: ~RegexOracle("dog"),
    "and": lambda: RegexOracle("dog") & LengthOracle(1, 5),
    "or": lambda: RegexOracle("dog") | LengthOracle(1, 5),
    "and other": lambda: RegexOracle("dog") & LengthOracle(1, 6),
}


def test_every_setting_changes_the_fingerprint() -> None:
    assert len({make().fingerprint for make in BUILT_IN.values()}) == len(BUILT_IN)


@pytest.mark.parametrize("make", BUILT_IN.values(), ids=BUILT_IN)
def test_pickling_keeps_fingerprint_and_scores(make: Callable[[], Oracle]) -> None:
    oracle = make()
    again = pickle.loads(pickle.dumps(oracle))
    assert again.fingerprint == oracle.fingerprint == make().fingerprint
    prompts = [Prompt("p", "", {"concepts": ["dog", "run"]})] * 2
    texts = ["1 3", "2 2 1"] if isinstance(oracle, TokenOracle) else ["the dogs ran", "A dog"]
    assert again(prompts, texts).tolist() == oracle(prompts, texts).tolist()


USER_FILE = """
import torch
from dinado.oracles import Oracle

LIMIT = 3

def score(prompts, texts):
    return [float(len(text) > LIMIT) for text in texts]

def greedy(texts):
    return texts

def raises_interrupted(prompts, texts):
    raise KeyError("topic")

class Mine(Oracle):
    def __init__(self, words=frozenset({"a", "b", "c", "d"}), tensor=torch.arange(3.)):
        self.words, self.tensor, self.layer = words, tensor, torch.nn.Identity()
    def score(self, prompts, texts):
        return [text in self.words for text in texts]

class Needy(Oracle):
    def __init__(self, threshold):
        self.threshold = threshold
    def score(self, prompts, texts):
        return [1.0] * len(texts)

class Unhashable(Mine):
    def __init__(self):
        self.handle = lambda: 0
        self.generator = (i for i in range(3))

instance = Mine({"x"})
closure = (lambda limit: lambda prompts, texts: [float(len(text) > limit) for text in texts])(2)
number = 3
"""


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds the user's file `mine.py`, imported afresh."""
    (tmp_path / "mine.py").write_text(USER_FILE)
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    for module in ("mine", "broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


FINGERPRINTS = """
from dinado.oracles import LexicalOracle, load_oracle
composed = LexicalOracle(["a"]) | ~load_oracle("mine:closure")
print(load_oracle("mine:score").fingerprint, load_oracle("mine:Mine").fingerprint, composed.fingerprint)
"""


def test_fingerprints_are_equal_in_other_processes(user_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(FINGERPRINTS, {})
    here = capsys.readouterr().out.split()
    assert len(set(here)) == 3
    # -P keeps the current directory off the path, so the other process also shows that oracles are found there.
    command = [sys.executable, "-B", "-P", "-c", FINGERPRINTS]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "1"}
    other = subprocess.run(command, cwd=user_folder, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.split() == here


@pytest.mark.parametrize("name", ["mine:score", "mine:Mine", "mine:closure", "mine:instance"])
def test_fingerprints_follow_the_users_file(user_folder: Path, name: str) -> None:
    before = load_oracle(name).fingerprint
    assert load_oracle(name).fingerprint == before
    (user_folder / "mine.py").write_text(USER_FILE.replace("LIMIT = 3", "LIMIT = 4"))
    del sys.modules["mine"]
    assert load_oracle(name).fingerprint != before


# ---------------------------------------------------------------- a user's oracle


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        ("mine:score", ["abc", "abcd"], [0, 1]),
        ("mine:closure", ["ab", "abc"], [0, 1]),
        ("mine:Mine", ["a", "z"], [1, 0]),
        ("mine:instance", ["a", "x"], [0, 1]),
        ("mine:instance.score", ["a", "x"], [0, 1]),
    ],
)
def test_users_oracles_load_score_and_pickle(
    user_folder: Path, name: str, texts: list[str], expected: list[float]
) -> None:
    oracle = configured_oracle(OracleConfig(name="user", function=name), None)
    assert scores_of(oracle, texts) == expected
    again = pickle.loads(pickle.dumps(oracle))
    assert scores_of(again, texts) == expected and again.fingerprint == oracle.fingerprint


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine", "not of the form module:callable"),
        ("mine:", "not of the form module:callable"),
        (":score", "not of the form module:callable"),
        ("absent:score", "no module 'absent' in "),
        ("absent.deeper:score", "no module 'absent' in "),
        ("broken:score", "importing broken failed: ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("mine:absent", "no 'absent' in "),
        ("mine:score.absent", "no 'absent' in "),
        ("mine:number", "is a int, which cannot be called"),
        ("mine:greedy", r"must take \(prompts, texts\), not \(texts\)"),
        ("mine:Needy", "cannot be made without arguments: TypeError.*threshold"),
    ],
)
def test_users_mistakes_are_one_line_that_names_the_spec(user_folder: Path, name: str, says: str) -> None:
    with pytest.raises(OracleError, match=says) as caught:
        load_oracle(name)
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)


def test_an_exception_in_users_code_names_spec_prompt_and_text(user_folder: Path) -> None:
    with pytest.raises(
        OracleError, match="oracle mine:raises_interrupted failed on prompt 'p0', text 'red': KeyError: 'topic'"
    ):
        load_oracle("mine:raises_interrupted")(PROMPTS, ["red", "blue"])


def test_settings_that_cannot_be_hashed_say_what_to_do(user_folder: Path) -> None:
    with pytest.raises(OracleError, match=r"cannot fingerprint a generator: .*define settings\(\)"):
        _ = load_oracle("mine:Unhashable").fingerprint
