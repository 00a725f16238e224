"""What the log shows of each class after a val phase."""

from __future__ import annotations

from typing import Any

import pytest

from classyseg.console import columns_of
from classyseg.hooks.class_table import class_table
from classyseg.structures import BestIs


def best_is(number: str) -> BestIs | None:
    return "smallest" if number.startswith("distance/") else "largest"


def table(record: dict[str, Any], unseen: tuple[str, ...] = (), columns: int = 80) -> list[str]:
    return class_table(record, best_is, unseen, columns)


def test_few_classes_are_all_shown_and_those_that_are_not_there_are_told_apart_from_0() -> None:
    iou = {"sky": 0.81234, "road": 0.0, "car": None, "tree": 1e-6, "bus": 0.0}
    accuracy = {"sky": 1.0, "road": 0.0, "car": None, "tree": 0.5, "bus": None}

    assert table({"mean_iou": 0.5, "iou": iou, "class_accuracy": accuracy}, unseen=("car", "bus")) == [
        "       iou  class_accuracy    class",
        "    0.8123          1.0000  0 sky",
        "         0               0  1 road",
        "         -               -  2 car",
        "   1.0e-06          0.5000  3 tree",
        "         0               -  4 bus (in no mask)",
        "         -: not in the set, nothing to measure",
    ]


def test_of_many_classes_the_worst_five_and_all_that_are_0_or_absent_are_shown() -> None:
    values = [0.0 if i in (3, 40) else None if i == 7 else (100 - i) / 100 for i in range(60)]
    iou = dict(zip([f"class {i}, or c{i}" for i in range(60)], values, strict=True))

    assert table({"iou": iou}, unseen=("class 40, or c40",)) == [
        "       iou     5 worst of 60 classes",
        *(f"    0.{100 - i}00  {i} class {i}, or c{i}" for i in (59, 58, 57, 56, 55)),
        "  iou 0 (1 of 60 classes): 3 class 3, or c3",
        "  iou 0, in no mask (1 of 60 classes): 40 class 40, or c40",
        "  iou -, not in the set (1 of 60 classes): 7 class 7, or c7",
    ]


def test_where_less_is_better_the_largest_are_the_worst_and_0_is_not_listed() -> None:
    assert table({"distance": {f"c{i}": float(i) for i in range(30)}}) == [
        "  distance     5 worst of 30 classes",
        *(f"   {i}.0000  {i} c{i}" for i in (29, 28, 27, 26, 25)),
    ]


def test_the_worst_of_every_number_are_among_those_shown() -> None:
    iou = {f"c{i}": (i + 1) / 100 for i in range(30)}
    dice = {f"c{i}": (30 - i) / 100 for i in range(30)}

    shown = [line.split()[2] for line in table({"iou": iou, "dice": dice})[1:]]

    assert shown == [str(i) for i in (0, 1, 2, 3, 4, 29, 28, 27, 26, 25)]


def test_where_nothing_was_measured_or_all_is_0_no_class_is_listed() -> None:
    names = [f"c{i}" for i in range(30)]

    assert table({"iou": dict.fromkeys(names), "dice": dict.fromkeys(names, 0.0)}) == [
        "  iou -, not in the set: all 30 classes",
        "  dice 0: all 30 classes",
    ]


NAMES = (
    "Stra\u00dfe, gro\u00df",
    "\u9053\u8def",
    "a\nb\x1b[31m",
    "e\u0301",
    "x" * 200,
    "\u0637\u0631\u064a\u0642",
    "\U0001f600",
)


@pytest.mark.parametrize("columns", [40, 80, 100])
@pytest.mark.parametrize("count", [len(NAMES), 150])
def test_names_of_any_script_and_length_stay_on_their_line_and_leave_the_numbers_straight(
    columns: int, count: int
) -> None:
    names = [*NAMES, *(f"class {i}" for i in range(count - len(NAMES)))]
    iou = {name: i / 1000 for i, name in enumerate(names, start=1)}
    lines = table({"iou": iou, "aux/iou": iou, "boundary_iou": iou}, columns=columns)

    rows = [line for line in lines if line.split()[0] == "0.0020"]
    assert all(len(line) == len(printed := line.rstrip()) and printed.isprintable() for line in lines)
    assert all(columns_of(line) <= columns for line in lines)
    assert sum(row.count("0.0020") for row in rows) == 3
    assert all(row.endswith("1 \u9053\u8def") for row in rows)


def test_a_record_without_numbers_by_class_has_no_table() -> None:
    assert table({"loss": 1.0, "accuracy_top_1": 0.5, "confusion_matrix": [[1]], "iou": {}, "notes": {"a": "b"}}) == []
