"""Label Studio's run lengths of brushes: the bits of `@thi.ng/rle-pack` over the RGBA values of all pixels."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from classyseg.datasets.files.json_file import in_words
from classyseg.errors import DataError

CHANNELS = 4
HEADER = 32 + 5 + 4 * 4
"""Bits: the number of values, the bits of a value, and the bits of a run's length in four sizes."""


def brush_mask(lengths: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels (height, width) that a brush painted: those whose alpha is not 0.

    `lengths` are bytes as a list of numbers. Memory is taken for the pixels of the image, whatever the bytes say.
    Raises: `DataError` for anything else, and for a brush of another size.

    Source: github.com/thi-ng/umbrella, packages/rle-pack.
    """
    if not isinstance(lengths, list) or not all(type(value) is int and 0 <= value < 256 for value in lengths):
        found = in_words(lengths) if not isinstance(lengths, list) else "a list of other values"
        raise DataError(f"its rle is {found}; expected a list of bytes, 0 to 255")
    bits = np.unpackbits(np.array(lengths, dtype=np.uint8))
    size = height * width * CHANNELS
    if len(bits) < HEADER or _number(bits, 0, 32) != size:
        told = _number(bits, 0, 32) if len(bits) >= HEADER else "nothing"
        raise DataError(f"its rle is of {told} values; expected {size}: {height} x {width} pixels of {CHANNELS}")
    word = _number(bits, 32, 5) + 1
    sizes = [_number(bits, 37 + 4 * i, 4) + 1 for i in range(4)]
    painted = np.zeros(size, dtype=bool)
    at, done = HEADER, 0
    while done < size:
        if at + 3 > len(bits):
            raise DataError("its rle ends before the last pixel")
        is_run, kind = bits[at], _number(bits, at + 1, 2)
        count = _number(bits, at + 3, sizes[kind]) + 1
        at += 3 + sizes[kind]
        used = word if is_run else word * count
        if at + used > len(bits) or done + count > size:
            raise DataError("its rle ends before the last pixel, or goes on behind it")
        values = bits[at : at + used].reshape(-1, word).any(axis=1)
        painted[done : done + count] = values
        at, done = at + used, done + count
    return painted.reshape(height, width, CHANNELS)[..., 3]


def _number(bits: npt.NDArray[np.uint8], start: int, count: int) -> int:
    number = 0
    for bit in bits[start : start + count].tolist():
        number = number << 1 | bit
    return number


BRUSH_FILE = re.compile(r"task-(\d{1,18})-annotation-(\d{1,18})-by-([^-]*)-(.+)-(\d{1,9})\.png", re.IGNORECASE)
"""A brush as a file: the numbers of its task and annotation, who made it, its tag and label, and which one it is."""
