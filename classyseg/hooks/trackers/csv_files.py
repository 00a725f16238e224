"""Tables for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from classyseg.console import printable
from classyseg.hooks.trackers.entries import STEP, Entry, Summary
from classyseg.hooks.trackers.names import Names
from classyseg.hooks.trackers.tracker_hook import TrackerHook
from classyseg.io import append_bytes, write_atomically
from classyseg.registry import HOOKS

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins so for a formula, and runs it."""
STEP_COLUMNS = ("step", "epoch", "loss", "lr", "samples_per_second", "data_wait")
PHASE_COLUMNS = ("phase", "step", "epoch")

Row = dict[str, str]


@HOOKS.register("csv")
class CsvHook(TrackerHook):
    """Writes tables into `csv/` of the run's folder: `steps.csv` of training steps, `phases.csv` of phases.

    They are CSV as RFC 4180 has it, in UTF-8, for spreadsheets and `pandas.read_csv`. A class has a column for each of
    its numbers, such as `iou/road`; what was not measured is an empty cell. Columns keep their places; new ones come
    last. `summary.csv` has the last and best numbers, when the run has ended. How each tracker works stands in
    trackers.md.

    Args:
        every: Training steps between two rows of `steps.csv`. Reading the loss waits for the GPU.
        finish_seconds: At the end of the run, so long is waited for what is not written yet.
    """

    folder = "csv"

    def __init__(
        self,
        *,
        every: Annotated[int, Field(ge=1)] = 50,
        finish_seconds: Annotated[float, Field(gt=0)] = 30.0,
    ) -> None:
        super().__init__(every=every, images=0, finish_seconds=finish_seconds)
        self._names = Names(printable)
        self._steps: _Table | None = None
        self._phases: _Table | None = None

    def open_tracker(self, history: Sequence[Entry]) -> None:
        folder = self.run_folder / self.folder
        self._names = Names(printable)
        steps, phases = ([self._row(e) for e in history if (e.kind == STEP) == is_step] for is_step in (True, False))
        self._steps = _Table(folder / "steps.csv", STEP_COLUMNS, steps, grows=False)
        self._phases = _Table(folder / "phases.csv", PHASE_COLUMNS, phases, grows=True)

    def write(self, entries: Sequence[Entry]) -> None:
        for table, is_step in ((self._steps, True), (self._phases, False)):
            rows = [self._row(entry) for entry in entries if (entry.kind == STEP) == is_step]
            if rows and table is not None:
                table.add(rows)

    def close_tracker(self, summary: Summary) -> None:
        rows = [["number", "last", "best", "best_step"]]
        for name, value in summary.last.items():
            best = summary.best.get(name)
            told = f"{name[0]}/{self._names.of(name[1:])}"
            rows.append([told, repr(value), *(("", "") if best is None else map(str, best))])
        rows += [["outcome", summary.outcome, "", ""], ["reason", _harmless(printable(summary.reason)), "", ""]]
        write_atomically(self.run_folder / self.folder / "summary.csv", _csv(rows))

    def _row(self, entry: Entry) -> Row:
        kind = {} if entry.kind == STEP else {"phase": entry.kind}
        values = {self._names.of(name[1:]): entry.numbers.get(name) for name in entry.names}
        numbers = {name: "" if value is None else repr(value) for name, value in values.items()}
        return {**kind, "step": str(entry.step), "epoch": str(entry.epoch), **numbers}


class _Table:
    """A file with a header and rows. If it `grows`, rows may bring new columns: all are kept, to write it anew."""

    def __init__(self, path: Path, columns: Iterable[str], rows: list[Row], *, grows: bool) -> None:
        self._path, self._columns, self._rows, self._grows = path, dict.fromkeys(columns), rows, grows
        self._know(rows)
        self._replace()
        self._rows = rows if grows else []

    def _know(self, rows: Iterable[Row]) -> bool:
        """Whether the rows have new columns; from now on, they are known."""
        known = len(self._columns)
        for row in rows if self._grows else ():
            self._columns |= dict.fromkeys(row)
        return len(self._columns) > known

    def add(self, rows: list[Row]) -> None:
        if self._grows:
            self._rows += rows
        if self._know(rows):
            self._replace()
            return
        append_bytes(self._path, self._text(rows))

    def _replace(self) -> None:
        write_atomically(self._path, _csv([list(map(_harmless, self._columns))]) + self._text(self._rows))

    def _text(self, rows: Iterable[Mapping[str, str]]) -> bytes:
        return _csv([row.get(column, "") for column in self._columns] for row in rows)


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)  # lines end with CR LF, as RFC 4180 says
    return text.getvalue().encode("utf-8", "backslashreplace")


def _harmless(text: str) -> str:
    """`text` as no formula: spreadsheets show what follows the quote."""
    return f"'{text}" if text.startswith(FORMULA) else text
