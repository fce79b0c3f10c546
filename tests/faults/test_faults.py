"""The short form: one fault of every second kind. The full form is ``make test-faults``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_a_run_outlives_one_fault_of_many_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, str(HERE / "inject.py"), "--short", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((HERE / "last_run.json").read_text())
    assert found["injected"] == found["survived"] >= 12 and found["lost"] == found["shards_lost"] == 0
    assert found["kinds"] >= 12 and not found["problems"]


def test_the_full_form_is_large_enough() -> None:
    sys.path.insert(0, str(HERE))
    from injections import everything, few

    faults = everything()
    assert len(faults) >= 190, "without those that need the right to mount"
    assert len({(fault.kind, fault.name) for fault in faults}) == len(faults)
    assert len({fault.kind for fault in few(faults)}) >= 12
