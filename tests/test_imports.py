"""Imports run one way, and the command line answers without loading torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dinado", "lightning_modules", "datamodules", "experiments")
LIGHTNING = ("lightning", "pytorch_lightning")
HEAVY = ("torch", "transformers", "datasets", "peft", *LIGHTNING)
TORCH_FREE = (
    *("config", "derived", "schema", "loader", "rules", "origins", "rollout_rules", "help", "cli", "run_folder"),
    *("place", "processes", "logging_rules", "naming", "report.palette"),
)
LEAVES = (
    "dinado.errors",
    "dinado.durable",
    "dinado.prompt",
    "dinado.seeding",
    "dinado.batch",
)  # what every room may use

# Where a whole run is put together; the methods and callbacks beside them know nothing about where data comes from.
WIRING = ("session", "evaluation", "rounds")

# The most specific entry decides: what a module may import of this project.
MAY_IMPORT = {
    "dinado.errors": (),
    "dinado.durable": ("dinado.errors",),
    "dinado.prompt": (),
    "dinado.seeding": (),
    "dinado.batch": LEAVES,
    "dinado.objectives": ("dinado.objectives",),
    "dinado.oracles": (*LEAVES, "dinado.oracles"),
    "dinado.bases": (*LEAVES, "dinado.objectives", "dinado.oracles", "dinado.bases"),
    "dinado.rollouts": (*LEAVES, "dinado.objectives", "dinado.oracles", "dinado.bases", "dinado.rollouts"),
    "dinado": ("dinado",),
    "lightning_modules": ("dinado", "lightning_modules", *(f"experiments.{name}" for name in TORCH_FREE)),
    **{f"lightning_modules.{name}": PACKAGES for name in WIRING},
    "datamodules": ("dinado", "datamodules", *(f"experiments.{name}" for name in TORCH_FREE)),
    "experiments": PACKAGES,
    **{f"experiments.{name}": ("dinado.errors", "experiments") for name in TORCH_FREE},
}
# What a module may not import from elsewhere.
FORBIDDEN = {
    "dinado": LIGHTNING,
    "dinado.oracles": ("transformers", *LIGHTNING),
    **{f"experiments.{name}": HEAVY for name in TORCH_FREE},
}


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, root: Path) -> set[str]:
    """Modules that a file imports anywhere in it, relative imports resolved."""
    package = module_name(path, root).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from dinado import models` imports dinado.bases, `from dinado.errors import X` the module alone
            of_package = (root / module.replace(".", "/")).is_dir()
            found |= {f"{module}.{alias.name}" for alias in node.names} if of_package else {module}
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


def test_arrows():
    assert [line for path in sources() for line in violations(path, ROOT)] == []


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("dinado/models/a.py", "from lightning import Trainer", ["dinado.bases.a imports lightning"]),
        (
            "dinado/models/a.py",
            "from ..rollouts import store",
            ["dinado.bases.a imports dinado.rollouts.rollout_store"],
        ),
        ("dinado/models/a.py", "from dinado import metrics", ["dinado.bases.a imports dinado.metrics"]),
        ("dinado/rollouts/a.py", "from dinado.bases import base_lm\nfrom dinado.errors import StoreError", []),
        ("dinado/metrics/a.py", "import dinado.rollouts.rollout_store", []),
        (
            "dinado/metrics/a.py",
            "import workbench.settings.config",
            ["dinado.metrics.a imports workbench.settings.config"],
        ),
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
        ("datamodules/tasks/a.py", "from workbench.settings.config import Config\nfrom .. import b", []),
        ("workbench/cli.py", "def f():\n    import torch", ["workbench.cli imports torch"]),
        ("workbench/report.py", "import torch\nfrom lightning_modules import base", []),
    ],
)
def test_checker_sees_violations(tmp_path, file, source, wrong):
    for package in ("dinado/models", "dinado/rollouts", "dinado/objectives", "datamodules/tasks"):
        (tmp_path / package).mkdir(parents=True)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert violations(path, tmp_path) == wrong


def test_command_line_modules_do_not_load_torch():
    """What ``ast`` cannot see: imports of imports."""
    names = ", ".join(f"experiments.{name}" for name in TORCH_FREE)
    code = f"import sys, {names}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
