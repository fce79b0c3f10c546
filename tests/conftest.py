"""Threads and fixtures for all tests. The environment is set before torch is first imported."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["WANDB_MODE"] = "disabled"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs do, and all that they start
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import pytest
import torch
from datamodule_case import markov_base, words_task
from store_case import Contains, content, make_store

from datamodules.tasks import Task
from dinado.bases.causal import BaseLM
from dinado.rollouts.collect import collect

torch.set_num_threads(1)
# A busy machine is no failure, and a failure has to come back on the next run.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")

LAUNCHER_VARIABLES = (
    "DINADO_RUN_ID RANK LOCAL_RANK NODE_RANK WORLD_SIZE SLURM_JOB_ID SLURM_PROCID TORCHELASTIC_RUN_ID WANDB_RUN_ID"
)


@pytest.fixture(autouse=True)
def single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the launcher that the test run itself may have, or leaves a run id behind."""
    for name in LAUNCHER_VARIABLES.split():
        monkeypatch.setenv(name, "")  # registers the old state, which is restored even if the test sets the variable
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real data: the folder DINADO_DATA, or one that lies beside the checkout."""
    root = Path(os.environ.get("DINADO_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip("needs real data: set DINADO_DATA to a data root")
    return root


@pytest.fixture(scope="module")
def base() -> BaseLM:
    """The small Markov base of the tests on stores and batches; other modules have their own."""
    return markov_base()


@pytest.fixture(scope="module")
def task() -> Task:
    """The task of the tests on batches."""
    return words_task()


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `data.cache` that the tests of a module fill once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(base: BaseLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a store that was collected in one go."""
    store = make_store(tmp_path_factory.mktemp("whole"), base)
    collect(base, Contains(), store)
    return content(store)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty folder for `data.cache`."""
    return tmp_path / "cache"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a YAML file and return its path, ready for ``loader.load``."""

    def to(text: str, name: str = "mine") -> str:
        (tmp_path / f"{name}.yaml").write_text(text)
        return str(tmp_path / f"{name}.yaml")

    return to


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., object]:
    """A script's ``main`` run in this process, which saves imports."""
    from commands import Result

    from workbench import cli

    def call(script: object, *words: str) -> object:
        settings = getattr(script, "SETTINGS", True)
        capsys.readouterr()
        code = cli.run(script.main, script.__doc__, script.OPTIONS, settings, words)  # type: ignore[attr-defined]
        return Result(code, *capsys.readouterr())

    return call
