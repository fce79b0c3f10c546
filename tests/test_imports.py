"""Imports run one way, by folder; files import each other in no circle; the command line answers without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dinado", "lightning_modules", "datamodules", "engine", "workbench")
LIGHTNING = ("lightning", "pytorch_lightning")
HEAVY = ("torch", "transformers", "datasets", "peft", *LIGHTNING)
# Files at the top of dinado/, which every room may use and which import nothing of ours but each other.
LEAVES = tuple(f"dinado.{name}" for name in ("errors", "durable", "prompt", "seeding", "batch", "ranks", "imports"))
TORCH_FREE_LEAVES = tuple(f"dinado.{name}" for name in ("errors", "durable", "prompt", "ranks", "imports"))
MODELS = ("dinado.objectives", "dinado.oracles", "dinado.bases", "dinado.control", "dinado.parameters")

# What a folder may import of this project; the most specific entry decides.
MAY_IMPORT = {
    **dict.fromkeys(LEAVES, LEAVES),
    "dinado": ("dinado",),
    "dinado.objectives": ("dinado.objectives",),
    "dinado.oracles": (*LEAVES, "dinado.oracles"),
    "dinado.bases": (*LEAVES, "dinado.objectives", "dinado.oracles", "dinado.bases"),
    "dinado.control": (*LEAVES, *MODELS),
    "dinado.parameters": (*LEAVES, *MODELS),
    "dinado.rollouts": (*LEAVES, *MODELS, "dinado.rollouts"),
    "datamodules": ("dinado", "datamodules", "workbench.settings"),
    "lightning_modules": ("dinado", "lightning_modules", "workbench.settings"),
    "engine": ("dinado", "datamodules", "lightning_modules", "engine", "workbench"),
    "workbench.settings": ("dinado.errors", "workbench.settings"),
    "workbench": (
        *TORCH_FREE_LEAVES,
        *("dinado.metrics.intervals", "dinado.metrics.distance", "dinado.evaluation.best_of_n"),
        "dinado.evaluation.measures",
        "workbench",
    ),
}
# What a folder may not import from elsewhere.
FORBIDDEN = {
    "dinado": LIGHTNING,
    "dinado.oracles": ("transformers", *LIGHTNING),
    "workbench": HEAVY,
}
LONGEST = 300


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, root: Path) -> set[str]:
    """Modules that a file imports anywhere in it, for types alone included, relative imports resolved."""
    package = module_name(path, root).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from dinado import bases` imports dinado.bases, `from dinado.errors import X` the module alone
            folder = root / module.replace(".", "/")
            names = {alias.name for alias in node.names}
            inside = {name for name in names if (folder / f"{name}.py").is_file() or (folder / name).is_dir()}
            found |= {f"{module}.{name}" for name in inside} | ({module} if names - inside else set())
    return found


def violations(path: Path, root: Path) -> list[str]:
    module = module_name(path, root)
    allowed = MAY_IMPORT[max((name for name in MAY_IMPORT if within(module, (name,))), key=len)]
    forbidden = tuple(word for name, words in FORBIDDEN.items() if within(module, (name,)) for word in words)
    wrong = []
    for target in sorted(imports(path, root)):
        ours = within(target, PACKAGES)
        only_torch = within(module, ("dinado.objectives",))
        if (
            (ours and not within(target, allowed))
            or within(target, forbidden)
            or (only_torch and not ours and target.split(".")[0] not in {"torch", *sys.stdlib_module_names})
        ):
            wrong.append(f"{module} imports {target}")
    return wrong


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def circles(arrows: dict[str, set[str]]) -> Iterator[list[str]]:
    """Every module that reaches itself, with the way."""
    for start in arrows:
        ways: list[list[str]] = [[start]]
        seen: set[str] = set()
        while ways:
            way = ways.pop()
            for target in arrows.get(way[-1], ()):
                if target == start:
                    yield [*way, start]
                    ways = []
                    break
                if target not in seen:
                    seen.add(target)
                    ways.append([*way, target])


def test_arrows():
    assert [line for path in sources() for line in violations(path, ROOT)] == []


def test_no_circle_between_files():
    modules = {module_name(path, ROOT): path for path in sources()}
    arrows = {name: {target for target in imports(path, ROOT) if target in modules} for name, path in modules.items()}
    assert [" -> ".join(way) for way in circles(arrows)] == []
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})) != []
    assert list(circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


def test_names_and_lengths_of_files():
    names = Counter(path.stem for path in sources() if path.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == [], "one name means two things"


def test_long_files_give_a_reason():
    for path in (
        *sources(),
        *(path for room in ("tests", "benchmarks") for path in sorted((ROOT / room).rglob("*.py"))),
    ):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > LONGEST:
            assert f"Longer than {LONGEST} lines because" in (ast.get_docstring(ast.parse(text)) or ""), path


def test_experiments_hold_settings_alone():
    kinds = {path.suffix for path in (ROOT / "experiments").rglob("*") if path.is_file()}
    assert kinds == {".yaml", ".sbatch", ".sh"}


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("dinado/bases/a.py", "from lightning import Trainer", ["dinado.bases.a imports lightning"]),
        ("dinado/bases/a.py", "from ..rollouts import store", ["dinado.bases.a imports dinado.rollouts"]),
        ("dinado/bases/a.py", "from dinado import metrics", ["dinado.bases.a imports dinado.metrics"]),
        ("dinado/bases/a.py", "from dinado.parameters import x", ["dinado.bases.a imports dinado.parameters"]),
        ("dinado/rollouts/a.py", "from dinado.bases.causal import BaseLM\nfrom dinado.errors import StoreError", []),
        ("dinado/metrics/a.py", "import dinado.rollouts.store", []),
        ("dinado/metrics/a.py", "import workbench.cli", ["dinado.metrics.a imports workbench.cli"]),
        ("dinado/objectives/a.py", "import math, torch\nfrom . import b", []),
        ("dinado/objectives/a.py", "import numpy", ["dinado.objectives.a imports numpy"]),
        (
            "dinado/objectives/a.py",
            "from dinado.errors import UserError",
            ["dinado.objectives.a imports dinado.errors"],
        ),
        ("dinado/oracles/a.py", "import transformers", ["dinado.oracles.a imports transformers"]),
        ("dinado/oracles/a.py", "import lemminflect, torch\nfrom dinado.prompt import Prompt", []),
        ("lightning_modules/a.py", "import datamodules.prompts", ["lightning_modules.a imports datamodules.prompts"]),
        ("lightning_modules/a.py", "import engine.session", ["lightning_modules.a imports engine.session"]),
        ("datamodules/tasks/a.py", "from workbench.settings.config import Config\nfrom .. import b", []),
        ("datamodules/tasks/a.py", "import workbench.cli", ["datamodules.tasks.a imports workbench.cli"]),
        ("workbench/cli.py", "def f():\n    import torch", ["workbench.cli imports torch"]),
        ("workbench/report/a.py", "import engine.session", ["workbench.report.a imports engine.session"]),
        ("engine/a.py", "import torch\nfrom lightning_modules import base", []),
    ],
)
def test_checker_sees_violations(tmp_path, file, source, wrong):
    for package in ("dinado/bases", "dinado/rollouts", "dinado/objectives", "dinado/metrics", "datamodules/tasks"):
        (tmp_path / package).mkdir(parents=True)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert violations(path, tmp_path) == wrong


def test_the_workbench_does_not_load_torch():
    """What ``ast`` cannot see: imports of imports."""
    names = ", ".join(module_name(path, ROOT) for path in sources() if "workbench" in path.parts)
    code = f"import sys, {names}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
