"""Which values, or colours, the masks of a folder hold: a look at all of them, or at as many as the time allows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from classyseg.datasets.files.headers import Header
from classyseg.datasets.files.images import header_of, read_colors, read_mask_values
from classyseg.datasets.files.mask_rules import holds_labels
from classyseg.errors import DataError

SECONDS = 20.0
MAX_MASKS = 2000
MAX_VALUES = 1000
"""So many values are counted; more than that are no classes."""
MAX_PIXELS = 2**26
"""Larger masks are not looked at."""


@dataclass
class Look:
    """`pixels` and `masks` count each value: the pixels of it, and the masks that hold it. `colors`: they are colours.

    `of` is how many masks there are, `seen` how many were looked at, `wrong` those that cannot be read, and why.
    `objects` counts masks that hold 1, 2, ... without a gap, as numbers of objects do, up to another one than the
    mask before.
    """

    of: int
    seen: int = 0
    colors: bool = False
    pixels: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)
    wrong: list[tuple[Path, str]] = field(default_factory=list)
    objects: int = 0
    is_endless: bool = False
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Height and width of each mask."""

    @property
    def is_whole(self) -> bool:
        return self.seen == self.of


def evenly(count: int, most: int) -> list[int]:
    """Up to `most` of `count` indices, in an order in which each beginning is spread over all."""
    if not count:
        return []
    indices = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    order = np.argsort([(i * 0.6180339887498949) % 1 for i in range(len(indices))], kind="stable")
    return [int(indices[i]) for i in order]


def look_at_masks(paths: Sequence[Path], *, seconds: float = SECONDS, most: int = MAX_MASKS) -> Look:
    """What is in the masks. It ends after so many seconds, or so many masks."""
    look, ends, last = Look(len(paths)), time.monotonic() + seconds, -1
    for index in evenly(len(paths), most):
        path = paths[index]
        try:
            header, _ = header_of(path)
            if not look.seen:
                look.colors = not holds_labels(header)
            if header.width * header.height > MAX_PIXELS:
                raise DataError("is larger than what is looked at", file=path)
            values, counts = _values(path, header, colors=look.colors)
        except DataError as error:
            look.wrong.append((path, error.without(path)))
        else:
            look.sizes[path] = header.height, header.width
            look.pixels.update(dict(zip(values, counts, strict=True)))
            look.masks.update(values)
            numbers = [value for value in values if value]
            look.objects += numbers == list(range(1, len(numbers) + 1)) and len(numbers) not in (0, last)
            last = len(numbers)
            look.is_endless |= len(look.pixels) > MAX_VALUES
        look.seen += 1
        if time.monotonic() > ends or look.is_endless or len(look.wrong) > 20:
            break
    return look


def _values(path: Path, header: Header, *, colors: bool) -> tuple[list[int], list[int]]:
    if not colors and not holds_labels(header):
        raise DataError(f"is {header}, where other masks hold numbers", file=path)
    array = read_colors(path) if colors else read_mask_values(path)
    if array.dtype == np.uint8:
        counts = np.bincount(array.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(array, return_counts=True)
    return values[:MAX_VALUES].tolist(), counts[:MAX_VALUES].tolist()
