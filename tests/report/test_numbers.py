"""The numbers on a page: which is best, their order, axes, means over time, and how many pictures fit."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import Elements, write_run

from classyseg.report import page, read_run
from classyseg.report.charts import charts_of
from classyseg.report.classes import class_tables


def run_with(folder: Path, records: list[dict[str, Any]], best_is: dict[str, str]) -> Path:
    write_run(folder)
    lines = [json.dumps({"phase": "val", "epoch": 1, **record}) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts = json.loads((folder / "report/facts.json").read_text(encoding="utf-8"))
    (folder / "report/facts.json").write_text(json.dumps({**facts, "best_is": best_is}), encoding="utf-8")
    return folder


def test_the_best_value_and_what_is_better_are_as_the_run_says(tmp_path: Path) -> None:
    records = [{"step": i, "loss": loss, "error": {"sky": loss}} for i, loss in ((10, 3.0), (20, 1.25), (30, 2.0))]
    folder = run_with(tmp_path / "run", records, {"error": "smallest"})
    row = Elements(page([folder])).row("loss")
    assert any("1.25" in cell for cell in row)
    assert not any("3" in cell.split()[0] for cell in row[1:] if cell.split())
    (table,) = class_tables([read_run(folder)])
    assert [(change.text, change.better) for change in table.rows[0].changes] == [("+0.75", False), ("-1", True)]


def test_records_are_by_step_and_the_later_of_two_counts(tmp_path: Path) -> None:
    records = [{"step": 20, "loss": 2.0}, {"step": 10, "loss": 1.0}, {"step": 20, "loss": 3.0}]
    run = read_run(run_with(tmp_path / "run", records, {}))
    assert [(record["step"], record["loss"]) for record in run.phase("val")] == [(10, 1.0), (20, 3.0)]


def test_a_wide_range_has_a_logarithmic_axis(tmp_path: Path) -> None:
    run = read_run(run_with(tmp_path / "run", [{"step": i, "odd": 10.0 ** (-4 * i)} for i in range(3)], {}))
    chart = next(chart for chart in charts_of([run], timing=False) if chart.title == "odd")
    high, middle, low = (float(y) for _, y in chart.lines[0].dots)
    assert chart.logarithmic
    assert middle - high == pytest.approx(low - middle, abs=0.2)
    assert low - middle > 50


def test_speeds_are_means_over_time(tmp_path: Path) -> None:
    records = [
        {"step": 10, "seconds": 1.0, "samples_per_second": 10.0, "data_wait": 0.9},
        {"step": 20, "seconds": 9.0, "samples_per_second": 100.0, "data_wait": 0.1},
    ]
    elements = Elements(page([run_with(tmp_path / "run", records, {})]))
    row = next(row for row in elements.rows if "18.0%" in [cell.strip() for cell in row])
    assert "91" in [cell.strip() for cell in row]


def test_pictures_beyond_the_size_of_a_page_are_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "run", images=2)
    sizes = [len(image["photo"]) + len(image["index"]) for image in read_run(folder).images]
    size = min(sizes)  # not that of the first one
    assert size < sizes[0]
    monkeypatch.setattr(importlib.import_module("classyseg.report.page"), "MAX_IMAGE_BYTES", size)
    text = page([folder])
    assert "3 pictures are left out" in text
    assert text.count('src="data:image/jpeg') == 1
    monkeypatch.setattr(importlib.import_module("classyseg.report.page"), "MAX_IMAGE_BYTES", 1)
    assert "4 pictures are left out" in page([folder])
