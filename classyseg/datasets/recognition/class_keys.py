"""From the values in masks to the keys `classes`, `label_map` and `color_map`, with the names that a folder tells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classyseg.config import listed
from classyseg.console import MAX_NAME, printable
from classyseg.datasets.files.lists import read_text
from classyseg.datasets.label_map import color_text, spans
from classyseg.datasets.recognition.mask_values import Look
from classyseg.errors import DataError

IGNORED = 255
MAX_CLASSES = 256
MANY = 64
"""Values without a gap that are more than most people's classes."""
MAX_NAME_BYTES = 2**20
NAME_FILES = (
    *("classes.txt", "class_names.txt", "labels.txt", "label_names.txt", "codes.txt", "names.txt"),
    *("class_dict.csv", "classes.csv", "label_colors.txt", "labelmap.txt"),
)
"""Files in which people name classes: a name a line, or a name with its colour."""
BINARY = ("background", "foreground")


@dataclass(frozen=True)
class Names:
    """The names that `source` tells: in order, or by the number of a colour."""

    source: str
    names: tuple[str, ...]
    by_color: dict[int, str]


def names_in(folder: Path, files: Sequence[str]) -> Names | None:
    """The names that one of the `files` of a folder tells; None if none does."""
    known = {name.lower(): name for name in files}
    for name in NAME_FILES:
        path = folder / known.get(name, name)
        if name not in known or path.stat().st_size > MAX_NAME_BYTES:
            continue
        try:
            lines = [line.strip() for line in read_text(path).splitlines()]
        except DataError:
            continue
        lines = [line for line in lines if line and not line.startswith("#")]
        colored = dict(filter(None, map(_with_color, lines)))
        if len(colored) > 1 and len({*colored.values()}) == len(colored):
            return Names(path.name, tuple(colored.values()), colored)
        if 1 < len(lines) == len({*lines}) and not any(re.search(r"[,;\t]|\d:\d", line) for line in lines):
            return Names(path.name, tuple(re.sub(r"^\d+\s*[:=]?\s+", "", line) for line in lines), {})
    return None


def _with_color(line: str) -> tuple[int, str] | None:
    """The colour and the name of a line such as `road,128,64,128`, `128 64 128 road` or `road:128,64,128::`."""
    found = re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*)", line)
    numbers, name = (found.groups()[:3], found[4]) if found else ((), "")
    if not found:
        found = re.fullmatch(r"(.*?\S)\s*[:,;\s]\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)[:,\s]*", line)
        numbers, name = (found.groups()[1:], found[1]) if found else ((), "")
    red, green, blue = (int(number[:4]) for number in numbers) if found else (256, 0, 0)
    return (red << 16 | green << 8 | blue, name) if max(red, green, blue) < 256 else None


@dataclass(frozen=True)
class Keys:
    """Keys of a data set's config, and what was decided without knowing. `problem`: why there are none."""

    config: dict[str, Any]
    told: str
    notes: tuple[str, ...] = ()
    problem: str = ""


def class_keys(look: Look, names: Names | None) -> Keys:
    """The keys for masks that hold these values."""
    if not look.pixels:
        reasons = listed(sorted({reason for _, reason in look.wrong}), limit=2) or "there is none"
        return Keys({}, "", problem=f"no mask can be read: {reasons}")
    if look.colors:
        return _of_colors(look, names)
    return _of_numbers(look, names)


def _of_numbers(look: Look, names: Names | None) -> Keys:
    found = sorted(look.pixels)
    told = f"masks hold {_some(found, spans)}"
    values = [value for value in found if value != IGNORED]
    if values == [0] and len(found) == 2:
        config = {"classes": list(_binary(names)), "label_map": {IGNORED: 1}}
        return Keys(config, told, () if names else (_binary_note("0 and 255"),))
    if problem := _no_classes(look, values, names):
        return Keys({}, told, problem=problem)
    is_dense = values == list(range(len(values)))
    if names and not names.by_color and len(names.names) > values[-1]:
        return Keys({"classes": list(names.names)}, told, (f"the names of classes are those of {names.source}",))
    if names and len(names.names) == len(values):
        config = {"classes": list(names.names)} | _map_of(values, is_dense)
        return Keys(config, told, (f"the names of classes are those of {names.source}, in the order of the values",))
    if values == [0, 1]:
        return Keys({"classes": list(BINARY)}, told, (_binary_note("0 and 1"),))
    if not is_dense and not look.is_whole and values[-1] < MAX_CLASSES:
        values, is_dense = list(range(values[-1] + 1)), True  # a mask that nobody looked at may hold what is missing
    config = {"classes": [f"class_{value}" for value in values]} | _map_of(values, is_dense)
    return Keys(config, told, (_made_up_note(names, len(values)),))


def _map_of(values: Sequence[int], is_dense: bool) -> dict[str, Any]:
    return {} if is_dense else {"label_map": {value: label for label, value in enumerate(values) if value != label}}


def _no_classes(look: Look, values: Sequence[int], names: Names | None) -> str:
    """Why these values are no classes; empty if they may be."""
    if len(values) < 2:
        only = f"{values[0]} and nothing else" if values else f"{IGNORED} alone"
        return f"the masks that were looked at hold {only}: there is nothing to tell apart"
    named = len(names.names) if names else 0
    if values[0] < 0 or (len(values) > MAX_CLASSES and len(values) > named):
        return f"the masks hold {len(values)} values or more, from {values[0]} to {values[-1]}; classes are few"
    if look.objects > max(1, look.seen // 2) and len(values) > 8 and len(values) > named:
        return (
            "most masks hold 1, 2, 3 and so on, each up to another number, as numbers of objects do; write masks of "
            "classes, such as 1 for every object"
        )
    common = sum(count for _, count in look.pixels.most_common(2))
    is_many = len(values) > max(named, 16 if not _is_run(values) else MANY)
    if is_many and common > 0.9 * look.pixels.total():
        return (
            f"the masks hold {len(values)} values, but two of them in {common / look.pixels.total():.0%} of all "
            "pixels, as masks do that were saved as JPEG or made smaller with soft edges; write them again without that"
        )
    return ""


def _is_run(values: Sequence[int]) -> bool:
    return values[-1] - values[0] + 1 == len(values)


def _of_colors(look: Look, names: Names | None) -> Keys:
    colors = sorted(look.pixels)
    told = f"masks hold {_some(colors, lambda some: ', '.join(map(color_text, some)), 4)}"
    by_color = names.by_color if names else {}
    if by_color and {*colors} <= {*by_color}:
        color_map = {color_text(color): label for label, color in enumerate(by_color)}
        config = {"classes": list(by_color.values()), "color_map": color_map}
        return Keys(config, told, (f"the names of colours are those of {names.source}",) if names else ())
    if len(colors) < 2:
        return Keys({}, told, problem="the masks that were looked at have one colour: there is nothing to tell apart")
    if look.is_endless or len(colors) > MAX_CLASSES:
        return Keys(
            {},
            told,
            problem=f"the masks hold {len(colors)} colours or more; classes are few. Perhaps they were saved as JPEG, "
            "or made smaller with soft edges, or they are pictures of images with their masks",
        )
    color_map = {color_text(color): label for label, color in enumerate(colors)}
    if names and len(names.names) == len(colors):
        note = f"the names of classes are those of {names.source}, in the order of the colours' numbers: look at them"
        return Keys({"classes": list(names.names), "color_map": color_map}, told, (note,))
    if colors == [0, 0xFFFFFF]:
        return Keys({"classes": list(BINARY), "color_map": color_map}, told, (_binary_note("black and white"),))
    config = {"classes": [f"class_{label}" for label in range(len(colors))], "color_map": color_map}
    note = _made_up_note(names, len(colors))
    if not look.is_whole:
        note += f"; {look.of - look.seen} masks were not looked at, and may hold more colours"
    return Keys(config, told, (note,))


def _binary(names: Names | None) -> tuple[str, ...]:
    return names.names if names and len(names.names) == 2 else BINARY


def _binary_note(values: str) -> str:
    return f"background and foreground are names for {values}; write better ones"


def _made_up_note(names: Names | None, count: int) -> str:
    if names is None:
        return "nothing tells the names of classes: those here are made up; write better ones"
    shown = printable(names.source, MAX_NAME)
    return f"{shown} tells {len(names.names)} names for {count} classes, so it is left aside: names are made up"


def _some(values: Sequence[int], text: Any, most: int = 12) -> str:
    runs: Iterator[int] | Sequence[int] = values[:most] if len(values) > most else values
    return f"{text(runs)}{' and more' if len(values) > most else ''}"
