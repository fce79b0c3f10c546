"""Inject every fault and print what became of them.

    python tests/faults/inject.py              all of them; half an hour on two cores
    python tests/faults/inject.py --short      one of every second kind, as `make test` does
    python tests/faults/inject.py --kind "a full disk"

After each fault the run goes on with ``--resume`` and has to end with the weights, logged numbers, rollouts and texts
of a run that was never disturbed, bit for bit. A shard that was whole when the fault struck may not be made
again. The table, as numbers, is left in tests/faults/last_run.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
import traceback
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import case  # noqa: E402

# Forked processes find everything imported.
import datasets  # noqa: E402, F401
import lightning  # noqa: E402, F401
import peft  # noqa: E402, F401
import scipy.stats  # noqa: E402, F401
import torchmetrics  # noqa: E402, F401
import transformers  # noqa: E402, F401
from injections import Fault, can_mount, everything, few  # noqa: E402

import engine.session  # noqa: E402, F401

LAST_RUN = HERE / "last_run.json"


def suffer(fault: Fault, parts: Path, folder: Path, expected: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Inject one fault in a folder of its own and let the run go on; what was wrong is empty if all is well."""
    row: dict[str, Any] = {"kind": fault.kind, "name": fault.name, "problem": "", "shards_lost": 0}
    started = time.monotonic()
    try:
        case.link(parts, folder)
        fault.inject(folder)
        whole = case.shards(folder)
        arguments = case.words(resume=case.RUN) if (folder / case.RUN / "config.yaml").exists() else case.words()
        ended = case.forked(folder, arguments)
        if ended.code:
            raise AssertionError(f"going on ended with {ended.code}: {ended.err[-600:]}")
        row["problem"] = case.difference(case.fingerprint(folder), expected[fault.processes], fault.to_rounding)
        after = case.shards(folder)
        lost = [name for name, shard in whole.items() if after.get(name) != shard]
        lost = [name for name in lost if not (fault.damaged and _depends_on(name, fault.damaged))]
        row["shards_lost"] = len(lost)
        row["problem"] = row["problem"] or (f"made again: {lost[0]}" if lost else "")
    except Exception:
        row["problem"] = traceback.format_exc()[-1500:]
    row["seconds"] = round(time.monotonic() - started, 1)
    if not row["problem"]:
        shutil.rmtree(folder)
    shutil.rmtree(f"{folder}.kept", ignore_errors=True)
    return row


def undisturbed(parts: Path, folder: Path, processes: int) -> dict[str, Any]:
    """What a run that nothing happens to ends with."""
    case.link(parts, folder)
    running = case.started(folder, case.words(f"trainer.devices={processes}"))
    _, err = running.communicate(timeout=case.LIMIT_SECONDS)
    if running.returncode:
        raise SystemExit(f"the run does not even end undisturbed: {err}")
    return case.fingerprint(folder)


def _depends_on(name: str, damaged: str) -> bool:
    """Whether a shard was spoilt, or says something about texts that were, and so is made again."""
    return fnmatch(name, damaged) or "/block-" in damaged


def share(faults: list[Fault], parts: Path, folder: Path, expected: dict[int, dict[str, Any]], out: Path) -> None:
    """Inject some of the faults, one after the other."""
    for number, fault in enumerate(faults):
        row = suffer(fault, parts, folder / str(number), expected)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each kind: how many were injected, survived and lost."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    lines = [f"{'fault':<42} {'injected':>8} {'survived':>8} {'lost':>5}"]
    for kind in [*kinds, ""]:
        mine = [row for row in rows if not kind or row["kind"] == kind]
        lost = sum(bool(row["problem"]) for row in mine)
        lines.append(f"{kind or 'all':<42} {len(mine):>8} {len(mine) - lost:>8} {lost:>5}")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]], short: bool) -> dict[str, Any]:
    """The same as numbers."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    problems = [row for row in rows if row["problem"]]
    return {
        "form": "short" if short else "full",
        "injected": len(rows),
        "kinds": len(kinds),
        "survived": len(rows) - len(problems),
        "lost": len(problems),
        "shards_lost": sum(row["shards_lost"] for row in rows),
        "by_kind": {
            kind: {
                "injected": sum(row["kind"] == kind for row in rows),
                "lost": sum(row["kind"] == kind for row in problems),
            }
            for kind in kinds
        },
        "problems": problems,
    }


def main() -> int:
    """Everything, or what the command line asks for; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one fault of every second kind")
    parser.add_argument("--kind", help="those of one kind")
    parser.add_argument("--name", help="the one of this name")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time (default 2)")
    arguments = parser.parse_args()
    faults = everything()
    if arguments.short:
        faults = few(faults)
    if arguments.kind:
        faults = [fault for fault in faults if fault.kind == arguments.kind]
    if arguments.name:
        faults = [fault for fault in faults if fault.name == arguments.name]
    if not faults:
        parser.error(f"no such kind; there are: {', '.join(dict.fromkeys(fault.kind for fault in everything()))}")
    if not can_mount():
        print("full and read-only disks are left out: this user may not mount any", file=sys.stderr)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="dinado-faults-"))
    parts, out = folder / "parts", folder / "rows.jsonl"
    case.build(parts)
    expected = {count: undisturbed(parts, folder / f"of-{count}", count) for count in {f.processes for f in faults}}
    context = multiprocessing.get_context("fork")
    jobs = [
        context.Process(target=share, args=(faults[job :: arguments.jobs], parts, folder / str(job), expected, out))
        for job in range(arguments.jobs)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        while job.is_alive():
            job.join(5)
            if sys.stderr.isatty() and out.exists():
                print(f"\r{len(out.read_text().splitlines())} of {len(faults)}", end="", file=sys.stderr, flush=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len(faults), "a process that injects faults has died of one"
    rows.sort(key=lambda row: [(fault.kind, fault.name) for fault in faults].index((row["kind"], row["name"])))
    found = summary(rows, arguments.short)
    LAST_RUN.write_text(json.dumps(found, indent=1) + "\n")
    print(table(rows))
    for row in found["problems"]:
        print(f"\n{row['kind']}, {row['name']}:\n{row['problem']}")
    print(f"\n{time.monotonic() - started:.0f} s")
    if found["lost"]:
        print(f"what is left of them lies in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
