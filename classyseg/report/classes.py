"""What a report tells of classes: their numbers and how these change, and which are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classyseg.console import printable
from classyseg.records import is_by_class
from classyseg.report.charts import is_number, number_text, spark
from classyseg.report.files import Matrix, Record, Run

MAX_NAME = 80
"""So many characters of a name are shown."""
MAX_PAIRS = 30
MAX_TABLE = 20
"""Up to so many classes the confusion matrix is a table; of more classes, a picture."""
MAX_CELLS = 20_000
"""The most cells of a matrix that a picture has, the largest ones."""
LARGER_IS_BETTER = ("iou", "accuracy", "dice", "precision", "recall", "f1", "f_score")
LEVELS = 10


@dataclass(frozen=True)
class Change:
    """A difference of two numbers: its text, and whether it is for the better; None: neither, or nobody knows."""

    text: str
    better: bool | None


@dataclass(frozen=True)
class ClassRow:
    """A class in a table: its number in each run as a text and as a share of a bar, and what else is known of it."""

    index: int
    name: str
    color: str
    values: Sequence[str]
    widths: Sequence[float]
    changes: Sequence[Change]
    spark: str = ""
    share: str = ""
    images: str = ""
    order: Sequence[float] = ()
    """The number of each column by which rows can be put in order; -1 for none."""


@dataclass(frozen=True)
class ClassTable:
    """A number of each class. `has_counts` says that their shares of the labels and numbers of images are known."""

    number: str
    rows: Sequence[ClassRow]
    step: int | None
    before: int | None
    first: int | None
    has_counts: bool


def hex_of(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def name_of(name: str) -> str:
    return printable(name, MAX_NAME)


def best_is(runs: Sequence[Run], number: str) -> str | None:
    """Which value of a number is best, `largest` or `smallest`, as the run or the number's name tells."""
    for run in runs:
        told = run.facts.get("best_is")
        if isinstance(told, Mapping) and told.get(number) in ("largest", "smallest"):
            return str(told[number])
    word = number.rpartition("/")[2]
    if word == "loss":
        return "smallest"
    return "largest" if any(known in word for known in LARGER_IS_BETTER) else None


def class_tables(runs: Sequence[Run]) -> list[ClassTable]:
    """A table for each number by class in the newest val records (test, where there is no val)."""
    newest = [_measured(run) for run in runs]
    keys = dict.fromkeys(
        key for records in newest for key, value in (records[-1] if records else {}).items() if _is_table(value)
    )
    return [_table(runs, newest, key) for key in keys]


def _is_table(value: Any) -> bool:
    return is_by_class(value) and bool(value)


def _measured(run: Run) -> list[Record]:
    return run.phase("val") or run.phase("test")


def _table(runs: Sequence[Run], measured: Sequence[Sequence[Record]], key: str) -> ClassTable:
    by_run = [[record for record in records if _is_table(record.get(key))] for records in measured]
    classes = dict.fromkeys(name for records in by_run if records for name in records[-1][key])
    better, run, records = best_is(runs, key), runs[0], by_run[0]
    known = {name: i for i, name in enumerate(run.classes)}
    shares, images = _shares(run)
    largest = max((v for each in by_run if each for v in each[-1][key].values() if is_number(v)), default=1.0)
    rows = []
    for place, name in enumerate(classes):
        index = known.get(name, -1)
        values = [each[-1][key].get(name) if each else None for each in by_run]
        if len(runs) == 1:
            history = [record[key].get(name) for record in records]
            changes = [_change(history, -2, better), _change(history, 0, better)]
        else:
            history = []
            changes = [_difference(value, values[0], better) for value in values[1:]]
        rows.append(
            ClassRow(
                place,
                name_of(name),
                hex_of(run.palette[index]) if index >= 0 else "#808080",
                [number_text(value) for value in values],
                [100 * value / max(largest, 1.0) if is_number(value) and value > 0 else 0.0 for value in values],
                changes,
                spark(history),
                f"{shares[index]:.2%}" if index >= 0 and shares is not None else "",
                f"{images[index]:,}" if index >= 0 and images else "",
                [value if is_number(value) else -1.0 for value in values],
            )
        )
    steps = [record["step"] for record in records]
    before = steps[-2] if len(steps) > 1 and len(runs) == 1 else None
    first = steps[0] if len(steps) > 1 and len(runs) == 1 else None
    counted = shares is not None and len(runs) == 1 and known.keys() >= classes.keys()
    return ClassTable(printable(key, MAX_NAME), rows, steps[-1] if steps else None, before, first, counted)


def _change(history: Sequence[float | None], place: int, better: str | None) -> Change:
    """From an earlier value to the newest."""
    if len(history) < 2:
        return Change("", None)
    return _difference(history[-1], history[place], better)


def _difference(new: float | None, old: float | None, better: str | None) -> Change:
    if new is None or old is None or not (is_number(new) and is_number(old)):
        return Change("-", None)
    text = f"{new - old:+.4f}".rstrip("0").rstrip(".") if abs(new - old) >= 5e-5 else "0"
    if text == "0" or better is None:
        return Change(text, None)
    return Change(text, (new > old) == (better == "largest"))


def _shares(run: Run) -> tuple[Any, Sequence[int]]:
    """The share of each class in the labels of the val set, and in how many of its images it is."""
    if run.matrix is None or not run.matrix.count:
        return None, ()
    totals = np.bincount(run.matrix.true, weights=run.matrix.count, minlength=len(run.classes))
    return totals / max(1.0, totals.sum()), run.matrix.images_with


@dataclass(frozen=True)
class Pair:
    """A class, what it is taken for, how often, and which share of the class that is."""

    true: str
    predicted: str
    count: str
    share: str


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: as rows of a table for a few classes, as cells for a picture of more."""

    step: int
    source: str
    names: Sequence[str]
    pairs: Sequence[Pair]
    table: Sequence[Sequence[tuple[str, int]]]
    """For each true class its shares by predicted class: a text, and a level of shade from 0 to `LEVELS`."""
    cells: Mapping[str, Any] | None
    left_out: int


def confusion_of(run: Run) -> Confusion | None:
    """The confusion matrix of a run; None where none is known."""
    matrix = run.matrix
    if matrix is None or not matrix.count:
        return None
    number = len(run.classes)
    true, predicted, count = (np.array(column, np.int64) for column in (matrix.true, matrix.predicted, matrix.count))
    totals = np.bincount(true, weights=count, minlength=number)
    names = [name_of(name) for name in run.classes]
    share = count / totals[true]
    wrong = np.flatnonzero(true != predicted)
    worth = count[wrong] / np.sqrt(totals[true[wrong]])  # between the most pixels and the largest share
    order = wrong[np.argsort(-worth, kind="stable")][:MAX_PAIRS]
    pairs = [Pair(names[true[i]], names[predicted[i]], f"{count[i]:,}", f"{share[i]:.1%}") for i in order]
    table, cells, left_out = _as_table(true, predicted, share, number), None, 0
    if number > MAX_TABLE:
        table, (cells, left_out) = [], _as_cells(matrix, names, totals)
    return Confusion(matrix.step, matrix.source, names, pairs, table, cells, left_out)


def _as_table(true: Any, predicted: Any, share: Any, number: int) -> list[list[tuple[str, int]]]:
    if number > MAX_TABLE:
        return []
    shares = np.zeros((number, number))
    shares[true, predicted] = share
    return [[(f"{100 * value:.1f}" if value else "", int(np.ceil(LEVELS * value))) for value in row] for row in shares]


def _as_cells(matrix: Matrix, names: Sequence[str], totals: Any) -> tuple[dict[str, Any], int]:
    chosen = np.argsort(-np.array(matrix.count), kind="stable")[:MAX_CELLS]
    cells = {
        "names": list(names),
        "totals": [int(total) for total in totals],
        "true": [matrix.true[i] for i in chosen],
        "predicted": [matrix.predicted[i] for i in chosen],
        "count": [matrix.count[i] for i in chosen],
    }
    return cells, len(matrix.count) - len(chosen)
