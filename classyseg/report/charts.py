"""Curves of a run's numbers by step, as lines of an SVG and as rows of a table."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from classyseg.console import printable
from classyseg.records import is_by_class
from classyseg.report.files import Record, Run

Point = tuple[int, float]
MAX_POINTS = 160
"""So many points of a curve are shown, at most: of more, the lowest and the highest of each stretch."""
MAX_CHARTS = 48
WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 42
NUM_TICKS = 5
LOG_RATIO = 1000
"""Numbers that are above 0, the largest so many times the smallest, get a logarithmic axis."""
DOTS = 40
"""A curve with at most so many points shows each as a dot."""
NOT_NUMBERS = ("phase", "epoch", "step", "weights_step")
TIMING = ("samples_per_second", "data_wait", "seconds")
LOOKS = {"train": "dashed", "val": "solid", "test": "point", "steps": "thin"}
"""How the phases of a chart of several runs are told apart; those of one run have colours."""
COLORS = 8
"""How many colours curves have."""
OF_ONE_RUN = {"train": 0, "val": 1, "test": 2, "steps": 3}


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of a record is a number that can be drawn."""
    return type(value) in (int, float) and -1e300 < value < 1e300  # type: ignore[operator]  # not for NaN


@dataclass(frozen=True)
class Series:
    """A number of one phase of one run: what it is called, its points by step, and how it is drawn."""

    label: str
    points: Sequence[Point]
    run: int
    color: int
    look: str


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: its place in the drawing, and its text."""

    place: float
    text: str


@dataclass(frozen=True)
class Line:
    """A series in the drawing: the points of its line, empty for a single one, and its dots."""

    series: Series
    path: str
    dots: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Chart:
    """A drawing of series, and the same as a table: a row for each step."""

    title: str
    lines: Sequence[Line]
    ticks_x: Sequence[Tick]
    ticks_y: Sequence[Tick]
    steps: tuple[float, float]
    logarithmic: bool
    rows: Sequence[tuple[int, Sequence[str]]]


LARGEST = sys.float_info.max


def number_text(value: object) -> str:
    """A number as a reader wants it: four digits that count; a dash for none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not -LARGEST <= value <= LARGEST:
        return "-"  # also for NaN, and for whole numbers of hundreds of digits
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:.4g}"


def charts_of(runs: Sequence[Run], *, timing: bool) -> list[Chart]:
    """A chart for each number of the records, `loss` first; with `timing`, those of how long things took instead."""
    names = [name for name in _names(runs) if (name in TIMING) == timing]
    charts = []
    for name in names:
        found = [series for i, run in enumerate(runs) for series in _series_of(run, i, name, several=len(runs) > 1)]
        if any(len(series.points) for series in found):
            charts.append(_chart(name, [series for series in found if series.points]))
    return charts[:MAX_CHARTS]


def step_charts(runs: Sequence[Run]) -> list[Chart]:
    """A chart for each number that only the records of steps have, such as norms of gradients and memory."""
    known = set(_names(runs))
    flat = [[_flat(record) for record in run.steps] for run in runs]
    names = dict.fromkeys(name for records in flat for record in records for name in record)
    charts = []
    for name in [name for name in names if name not in known and name not in NOT_NUMBERS][:MAX_CHARTS]:
        series = []
        for i, (run, records) in enumerate(zip(runs, flat, strict=True)):
            points = [(int(record["step"]), record[name]) for record in records if name in record]
            label = f"{run.name}, steps" if len(runs) > 1 else "steps"
            color = i % COLORS if len(runs) > 1 else 0
            series.append(Series(label, thinned(points), i, color, "solid"))
        charts.append(_chart(name, [each for each in series if each.points]))
    return charts


def _names(runs: Sequence[Run]) -> list[str]:
    """The names of all numbers in the records of phases: loss first, then as they come."""
    found: dict[str, None] = {"loss": None}
    for run in runs:
        for record in run.metrics:
            for key, value in record.items():
                if key not in NOT_NUMBERS and is_number(value):
                    found.setdefault(key)
    last = "lr"
    return [*(name for name in found if name != last), *(name for name in found if name == last)]


def _series_of(run: Run, number: int, name: str, *, several: bool) -> list[Series]:
    found = []
    for phase in ("steps", "train", "val", "test"):
        records = run.steps if phase == "steps" else run.phase(phase)
        if phase == "steps" and name in TIMING:
            continue
        if phase == "test" and name == "lr":
            continue
        points = [(record["step"], record[name]) for record in records if is_number(record.get(name))]
        color = number % COLORS if several else OF_ONE_RUN[phase]
        look = LOOKS[phase] if several or phase in ("steps", "test") else "solid"
        found.append(Series(f"{run.name}, {phase}" if several else phase, thinned(points), number, color, look))
    if name == "lr":  # val and train have the same
        found = [series for series in found if "val" not in series.label.rpartition(", ")[2]]
    return found


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record, those within a mapping as KEY.NAME."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping) and prefix.count(".") < 3:
            found |= _flat(value, f"{prefix}{key}.")
        elif is_number(value):
            found[f"{prefix}{key}"] = value
    return found


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: the first, the last, and the lowest and the highest of each stretch between them."""
    if len(points) <= limit:
        return list(points)
    inner, parts = points[1:-1], (limit - 2) // 2
    kept = [points[0]]
    for i in range(parts):
        stretch = inner[i * len(inner) // parts : (i + 1) * len(inner) // parts]
        low, high = (find(stretch, key=lambda point: point[1]) for find in (min, max))
        kept += sorted({low, high})
    return [*kept, points[-1]]


def _chart(title: str, series: Sequence[Series]) -> Chart:
    values = [value for each in series for _, value in each.points]
    steps = [step for each in series for step, _ in each.points]
    low, high, logarithmic = min(values), max(values), False
    if low > 0 and high / low > LOG_RATIO:
        logarithmic = True
    ticks = _log_ticks(low, high) if logarithmic else nice_ticks(low, high)
    low, high = min(low, *ticks), max(high, *ticks)
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((step - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        part = _part(value, low, high, logarithmic=logarithmic)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - part)

    lines = []
    for each in series:
        places = [(f"{x(step):.1f}", f"{y(value):.1f}") for step, value in each.points]
        path = " ".join(f"{left},{top}" for left, top in places)
        lines.append(Line(each, path if len(places) > 1 else "", places if len(places) <= DOTS else []))
    step_ticks = [tick for tick in nice_ticks(first, last) if first <= tick <= last and tick == int(tick)] or [first]
    return Chart(
        printable(title, 80),
        lines,
        [Tick(x(tick), number_text(int(tick))) for tick in step_ticks],
        [Tick(y(tick), number_text(tick)) for tick in ticks],
        (first, last),
        logarithmic,
        _rows(series),
    )


def _part(value: float, low: float, high: float, *, logarithmic: bool) -> float:
    if logarithmic:
        value, low, high = math.log10(value), math.log10(low), math.log10(high)
    return (value - low) / (high - low) if high > low else 0.5


def _rows(series: Sequence[Series]) -> list[tuple[int, list[str]]]:
    by_series = [dict(each.points) for each in series]
    steps = sorted({step for points in by_series for step in points})
    return [(step, [number_text(points[step]) if step in points else "" for points in by_series]) for step in steps]


def nice_ticks(low: float, high: float, count: int = NUM_TICKS) -> list[float]:
    """About `count` round numbers that enclose the range."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    if raw < 1e-300:
        return [low]
    size = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw), 10 * size)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, min(last, first + 4 * count) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // NUM_TICKS)
    return [10.0**power for power in range(first, last + 1, every)]


def spark(values: Iterable[float | None], width: int = 96, height: int = 22) -> str:
    """A small curve of values between 0 and the largest, for a cell of a table: the ends of its lines."""
    points = [(i, value) for i, value in enumerate(values) if value is not None and is_number(value)]
    points = thinned(points, 48)
    if len(points) < 2:
        return ""
    low, high = min(v for _, v in points), max(v for _, v in points)
    last = points[-1][0] or 1
    parts = [(i / last, _part(value, low, high, logarithmic=False)) for i, value in points]
    return " ".join(f"{2 + (width - 4) * x:.0f},{height - 2 - (height - 4) * y:.1f}" for x, y in parts)


def class_numbers(record: Record) -> dict[str, Mapping[str, float | None]]:
    """The numbers by class in a record, such as `iou`."""
    return {key: value for key, value in record.items() if is_by_class(value) and value}
