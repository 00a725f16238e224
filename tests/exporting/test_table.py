"""The page of exports tells of every head in every format, and of each family of backbones."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path

import pytest

from classyseg.registry import HEADS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "export.md"
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "exports.py"))
TABLES, END = SCRIPT["TABLES"], SCRIPT["END"]


ROW = re.compile(r"^\| `(\w+)` \| `(\w+(?:\.\w+)?)` \| (.+) \|$", re.MULTILINE)


def rows_of(kind: str) -> dict[tuple[str, str], list[str]]:
    inside = PAGE.read_text(encoding="utf-8").partition(TABLES[kind].begin)[2].partition(END)[0]
    return {(name, form): cells.split(" | ") for name, form, cells in ROW.findall(inside)}


def test_each_head_has_a_row_for_each_format() -> None:
    heads = [name for name in HEADS.names() if not name.startswith("test_")]
    assert rows_of("heads").keys() == {(head, form) for head in heads for form in TABLES["heads"].formats}


def test_each_family_of_backbones_has_a_row_for_each_format() -> None:
    rows, families = rows_of("backbones"), SCRIPT["variants"]()
    names = {name for name, _ in rows}
    assert rows.keys() == {(name, form) for name in names for form in TABLES["backbones"].formats}
    missing = [variants[0] for variants in families.values() if not names & {*variants}]
    assert not [name for name in missing if SCRIPT["reads_images"](name)]


@pytest.mark.parametrize("kind", TABLES)
def test_each_file_equals_its_model_at_each_size(kind: str) -> None:
    for (name, form), cells in rows_of(kind).items():
        *values, largest = [cell.split(" (")[0] for cell in cells]
        assert len(values) == 11, (name, form)
        assert (largest == "-") == (form != "executorch")
        values += [largest] * (form == "executorch")
        limit = math.inf if form.startswith("int8") else 1e-4  # 8 bits of random weights tell no accuracy
        assert all(float(value) < limit for value in values), f"{name} differs from its model as {form}"
