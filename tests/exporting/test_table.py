"""The page of exports tells of every head in every format."""

from __future__ import annotations

import re
from pathlib import Path

from classyseg.inference.exported.formats import FORMATS
from classyseg.registry import HEADS

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def test_each_head_has_a_row_for_each_format_and_equals_its_model() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+(?:\.\w+)?)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = {(head, name) for head, name, _ in rows}
    heads = [name for name in HEADS.names() if not name.startswith("test_")]
    assert found >= {(head, name) for head in heads for name in (*FORMATS, "int8.xml", "int8.onnx")}
    values = [cell for _, name, cells in rows if name in FORMATS for cell in cells.split(" | ")]
    assert all(float(cell) < 1e-4 for cell in values), "a head differs from its model, or does not export"
