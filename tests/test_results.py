"""Tables in the docs are what their benchmarks make of the committed records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import control_study, exact_world_sweep, variants_report

ROOT = Path(__file__).resolve().parent.parent
EXACT = ROOT / "docs" / "results" / "exact_world.jsonl"


def test_the_variants() -> None:
    text = variants_report.text_of(variants_report.read_records(variants_report.RECORDS))
    assert variants_report.RECORDS.with_suffix(".md").read_text(encoding="utf-8") == text
    assert text in (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")


def test_a_row_of_the_variants_by_hand() -> None:
    rows = [json.loads(line) for line in variants_report.RECORDS.read_text(encoding="utf-8").splitlines()]
    mine = [row for row in rows if row["method"] == "dinado_soft" and row["rollouts.per_prompt"] == "8000"]
    mean = sum(row["val/kl_to_optimum"] for row in mine) / len(mine)
    page = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
    assert f"| DiNADO-Soft | {len(mine)} | {mean:.3g} [" in page


@pytest.mark.parametrize("rarity", [0.0, -1.5])
def test_the_exact_world(rarity: float) -> None:
    rows = [row for row in exact_world_sweep.read(EXACT) if row["rarity"] == rarity]
    table = exact_world_sweep.table("default", rarity, [row for row in rows if row["setting"] == "default"])
    page = (ROOT / "docs" / "exact_world.md").read_text(encoding="utf-8")
    assert rows and all(line in page for line in table.splitlines()[2:])


def test_the_quick_control_study() -> None:
    page = (ROOT / "docs" / "commongen.md").read_text(encoding="utf-8")
    runs = control_study.stored(control_study.QUICK_RESULTS)
    found = control_study.summary(runs)
    assert control_study.table(runs) in page
    assert f"closes {found['gap_closed']:.3f} [" in page and f"fine-tuning {found['sft_gap_closed']:.3f} [" in page
    said = f"{found['gap_over_sft']:.3f} [{found['gap_over_sft_low']:.3f}, {found['gap_over_sft_high']:.3f}]"
    assert said in page and f"pays {found['frontier_ratio']:.2f} times" in page
