"""What trackers are given: the numbers of a step or a phase with their names as parts, and how a run ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classyseg.hooks.numbers import is_by_class
from classyseg.io import read_json_lines
from classyseg.records import RecordFile
from classyseg.run_folder import METRICS, POINTS
from classyseg.structures import BestIs

STEP = "step"
KINDS = (STEP, "train", "val", "test")
"""The kinds of entries, in the order of those that end at the same step: a training step, the three phases."""
NO_NUMBERS = ("phase", "epoch", "step", "kind", "time")
SAMPLES = "samples"
"""The folder of a tracker's pictures, with a folder for each val phase."""

Name = tuple[str, ...]
"""The name of a number in parts: `("val", "iou", "road")`. Classes may have any names, with slashes, too."""


@dataclass(frozen=True)
class Entry:
    """The numbers of a training step or of a phase; `time` is in seconds since 1970."""

    kind: str
    step: int
    epoch: int
    time: float
    numbers: Mapping[Name, float]
    pictures: Mapping[str, Path] = field(default_factory=dict)
    """PNG files of samples, by names that are the same in every phase."""
    names: tuple[Name, ...] = ()
    """The names of all numbers of the record: also of those that are null, such as those of a class that the set lacks.
    """


@dataclass(frozen=True)
class Summary:
    """How a run ended: `finished`, `stopped` (it can be resumed) or `failed`; and its last and best numbers."""

    outcome: str
    reason: str
    last: Mapping[Name, float]
    best: Mapping[Name, tuple[float, int]]
    """The best value of each number of the val phases, and its step."""


def points_file(folder: str) -> RecordFile:
    """The file in the tracker's `folder` of what metrics.jsonl lacks: the points of steps, and when phases ended."""
    return RecordFile(f"{folder}/{POINTS}", {"kind": str, "step": int, "epoch": int})


def entry_of(record: Mapping[str, Any], kind: str, time: float, pictures: Mapping[str, Path] | None = None) -> Entry:
    """The entry of a record of a step or of a phase."""
    values = dict(_values(record, kind))
    numbers = {name: float(value) for name, value in values.items() if is_number(value)}
    return Entry(kind, record["step"], record["epoch"], time, numbers, pictures or {}, tuple(values))


def _values(record: Mapping[str, Any], kind: str) -> Iterator[tuple[Name, Any]]:
    for key, value in record.items():
        if key in NO_NUMBERS:
            continue
        if is_by_class(value):
            yield from (((kind, key, name), number) for name, number in value.items())
        elif value is None or isinstance(value, int | float):
            yield (kind, key), value


def is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of many digits
        return False


def history(run_folder: Path, folder: str) -> list[Entry]:
    """All entries so far, in order. Resuming a run has removed those from its files that will come again."""
    rows = read_json_lines(run_folder / folder / POINTS, points_file(folder).keys)
    times = {(row["kind"], row["step"]): row["time"] for row in rows if is_number(row.get("time"))}
    entries = {(STEP, row["step"]): entry_of(row, STEP, times[STEP, row["step"]]) for row in rows if _is_point(row)}
    for record in read_json_lines(run_folder / METRICS):
        kind, step = record["phase"], record["step"]
        if kind in KINDS:
            time = times.get((kind, step), (run_folder / METRICS).stat().st_mtime)
            pictures = kept_pictures(run_folder / folder, kind, step)
            entries[kind, step] = entry_of(record, kind, time, pictures)
    return sorted(entries.values(), key=lambda entry: (entry.step, KINDS.index(entry.kind)))


def _is_point(row: Mapping[str, Any]) -> bool:
    return row["kind"] == STEP and is_number(row.get("time"))


def picture_folder(folder: Path, kind: str, step: int) -> Path:
    return folder / SAMPLES / f"{kind}-{step}"


def kept_pictures(folder: Path, kind: str, step: int) -> dict[str, Path]:
    """The pictures of a phase, by their names."""
    found = picture_folder(folder, kind, step)
    return {path.stem: path for path in sorted(found.glob("*.png")) if path.is_file() and not path.is_symlink()}


class Results:
    """The last and the best numbers of the phases so far. `best_is` says which value of a val record's number is."""

    def __init__(self, entries: Iterable[Entry], best_is: Callable[[str], BestIs | None]) -> None:
        self._best_is = best_is
        self.last: dict[Name, float] = {}
        self.best: dict[Name, tuple[float, int]] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        if entry.kind == STEP:
            return
        self.last |= entry.numbers
        for name, value in entry.numbers.items() if entry.kind == "val" else ():
            best_is = self._best_is("/".join(name[1:]))
            before = self.best.get(name)
            if best_is is not None and (
                before is None or (value > before[0] if best_is == "largest" else value < before[0])
            ):
                self.best[name] = value, entry.step
