"""The table of classes that the log shows after a val phase."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from classyseg.console import columns_of, printable, shortened, wrapped
from classyseg.records import is_by_class
from classyseg.structures import BestIs

MANY = 20
"""Up to so many classes all are shown; of more classes, the worst and those at 0."""
WORST = 5
MIN_COLUMNS = 8

Values = Mapping[str, float | None]


def class_table(
    record: Mapping[str, Any], best_is: Callable[[str], BestIs | None], unseen: Collection[str], columns: int
) -> list[str]:
    """The lines for a record's numbers by class, such as `iou`; no lines if it has none.

    Each class comes after its numbers, so that names of any script and length leave the columns straight. `unseen` are
    the classes that are in no mask. `best_is` says which value of `iou/CLASS` is best.
    """
    numbers = {
        key: value for key, value in record.items() if isinstance(value, Mapping) and value and is_by_class(value)
    }
    groups: dict[tuple[str, ...], dict[str, Values]] = {}
    for key, values in numbers.items():
        groups.setdefault(tuple(values), {})[key] = values
    lines: list[str] = []
    for classes, group in groups.items():
        for part in _side_by_side(group, columns):
            shown = [*range(len(classes))] if len(classes) <= MANY else _worst(part, best_is)
            lines += _rows(classes, part, shown, unseen, columns)
            if len(classes) > MANY:
                lines += _lists(classes, part, best_is, unseen, columns)
    return lines


def _side_by_side(group: Mapping[str, Values], columns: int) -> Iterator[dict[str, Values]]:
    """The numbers of `group` in tables that leave half of the line to the names of the classes."""
    part: dict[str, Values] = {}
    for key, values in group.items():
        if part and sum(_column(known) for known in [*part, key]) > columns // 2:
            yield part
            part = {}
        part[key] = values
    yield part


def _column(key: str) -> int:
    return 2 + max(MIN_COLUMNS, columns_of(printable(key)))


def _rows(
    classes: Sequence[str], part: Mapping[str, Values], shown: Sequence[int], unseen: Collection[str], columns: int
) -> Iterator[str]:
    of = f"{len(shown)} worst of {len(classes)} classes" if len(shown) < len(classes) else "class"
    label = len(str(len(classes) - 1))
    if shown:
        head = "".join(printable(key).rjust(_column(key)) for key in part) + f"  {' ' * label} "
        yield head + shortened(of, columns - len(head))
    absent = False
    for i in shown:
        cells = [_text(values[classes[i]]).rjust(_column(key)) for key, values in part.items()]
        start = f"{''.join(cells)}  {i:{label}} "
        note = " (in no mask)" if classes[i] in unseen and any(v[classes[i]] is not None for v in part.values()) else ""
        absent |= any(values[classes[i]] is None for values in part.values())
        yield start + shortened(printable(classes[i]), max(MIN_COLUMNS, columns - len(start) - len(note))) + note
    if absent:
        yield f"{'-'.rjust(_column(next(iter(part))))}: not in the set, nothing to measure"


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    if value == 0:
        return "0"
    text = f"{value:.4f}"
    return f"{value:.1e}" if len(text) > MIN_COLUMNS or float(text) == 0 else text


def _worst(part: Mapping[str, Values], best_is: Callable[[str], BestIs | None]) -> list[int]:
    """The places of the worst classes by each number; without classes at 0, which `_lists` tells, if 0 is worst."""
    found: dict[int, None] = {}
    for key, values in part.items():
        small_is_best = best_is(f"{key}/{next(iter(values))}") == "smallest"
        measured = [
            (-value if small_is_best else value, i)
            for i, value in enumerate(values.values())
            if value is not None and not math.isnan(value) and (small_is_best or value != 0)
        ]
        found |= dict.fromkeys(i for _, i in sorted(measured)[:WORST])
    return [*found]


def _lists(
    classes: Sequence[str],
    part: Mapping[str, Values],
    best_is: Callable[[str], BestIs | None],
    unseen: Collection[str],
    columns: int,
) -> Iterator[str]:
    """Lists classes at 0, those at 0 that are in no mask, and those without a value; equal lists come once."""
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for key, values in part.items():
        small_is_best = best_is(f"{key}/{classes[0]}") == "smallest"
        zeros = [] if small_is_best else [i for i, name in enumerate(classes) if values[name] == 0]
        for what, members in (
            ("0", [i for i in zeros if classes[i] not in unseen]),
            ("0, in no mask", [i for i in zeros if classes[i] in unseen]),
            ("-, not in the set", [i for i, name in enumerate(classes) if values[name] is None]),
        ):
            if members:
                found.setdefault((what, tuple(members)), []).append(printable(key))
    for (what, places), keys in found.items():
        first = f"  {', '.join(keys)} {what}"
        if len(places) == len(classes):
            yield f"{first}: all {len(classes)} classes"
            continue
        words = [f"{i} {printable(classes[i])}" for i in places]
        words = [f"{word};" for word in words[:-1]] + words[-1:]
        yield from wrapped(words, columns, first=f"{first} ({len(places)} of {len(classes)} classes):", indent="    ")
