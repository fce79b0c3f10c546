"""The record of a GPU: its steps, what becomes of one that fails, and the kit for a machine without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import gpu_kit, gpu_record
from benchmarks.gpu_record import Step


def run(step: Step, seconds: float = 60) -> dict[str, object]:
    return gpu_record.run(step, "cpu", seconds)


def test_a_step_leaves_its_numbers_or_its_last_words() -> None:
    found = run(Step("good", ["-c", 'print(\'a table\'); print(\'{"speed": 2.5, "name": "x"}\')']))
    assert found["ok"] and found["numbers"] == {"speed": 2.5}
    found = run(Step("bad", ["-c", "print('it broke'); raise SystemExit(3)"]))
    assert not found["ok"] and found["why"] == "exit code 3" and "it broke" in str(found["output"])


def test_a_step_that_hangs_is_ended_with_its_children() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
    found = run(Step("slow", ["-c", child]), seconds=2)
    assert not found["ok"] and "not done after 2 s" in str(found["why"]) and float(str(found["seconds"])) < 30


def test_every_step_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "new" / "gpu.json"
    seen = f"import json; print(len(json.load(open({str(output)!r}))['steps']))"
    steps = [Step("one", ["-c", "print(1)"]), Step("two", ["-c", seen]), Step("three", ["-c", "raise SystemExit(1)"])]
    monkeypatch.setattr(gpu_record, "steps", lambda device, folder: iter(steps))
    monkeypatch.setattr("sys.argv", ["gpu_record", "--device", "cpu", "--output", str(output)])
    assert gpu_record.main() == 1, "a failed step is told by the exit code"
    record = json.loads(output.read_text())
    assert record["device"]["card"] == "none, rehearsed on a CPU" and record["steps"]["two"]["said"] == "1"
    assert [found["ok"] for found in record["steps"].values()] == [True, True, False]


def test_without_a_gpu_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_record", "--output", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit, match="2"):
        gpu_record.main()
    assert not (tmp_path / "gpu.json").exists()


def test_the_commands_of_the_steps_parse(tmp_path: Path) -> None:
    """What runs on a card alone is at least spelt right."""
    for device in ("cuda", "cpu"):
        steps = list(gpu_record.steps(device, tmp_path))
        assert len({step.name for step in steps}) == len(steps) > 5
        for step in steps:
            script = step.words[0]
            assert script == "-m" or (ROOT / script).is_file()
        words = next(step.words for step in steps if step.name == "quickstart")
        done = subprocess.run(
            [sys.executable, *words[:2], *[w for w in words[2:] if "=" in w], "--print-config"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    for name, size in {"wheels/a.whl": 25, "wheels/b.whl": 4, "base/c.whl": 9}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(bytes(range(size)))
    gpu_kit.divide(source, tmp_path / "kit", 10)
    return tmp_path / "kit"


def test_a_kit_comes_in_folders_of_a_size_and_is_put_together(kit: Path, tmp_path: Path) -> None:
    sizes = [sum(f.stat().st_size for f in folder.iterdir() if f.name != gpu_kit.INDEX) for folder in kit.iterdir()]
    assert max(sizes) <= 10 and sum(sizes) == 38
    assert gpu_kit.unpack(kit, tmp_path / "out") == 0
    assert (tmp_path / "out/wheels/a.whl").read_bytes() == bytes(range(25))
    assert sorted(str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*.whl")) == [
        "base/c.whl",
        "wheels/a.whl",
        "wheels/b.whl",
    ]


@pytest.mark.parametrize("what", ["missing", "damaged", "no index"])
def test_an_incomplete_kit_is_one_line(
    kit: Path, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next(kit.glob("*/wheels@a.whl.1")) if what != "no index" else next(kit.glob(f"*/{gpu_kit.INDEX}"))
    if what == "damaged":
        file.write_bytes(b"x")
    else:
        file.unlink()
    assert gpu_kit.unpack(kit, tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and ("carry all" in line or "gpu_kit.py pack" in line)


def test_the_kit_names_tested_packages() -> None:
    names = gpu_kit.requirements()
    assert {"omegaconf", "transformers", "pytest", "click", "certifi"} <= names
    assert not names & {"torch", "triton", "ruff"}
