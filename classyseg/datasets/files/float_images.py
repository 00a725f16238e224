"""Images of `bits: 32`: the numbers that a file holds, as float32, never scaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from classyseg.datasets.files.headers import Header
from classyseg.errors import DataError

NUMBER_TYPES = tuple(np.dtype(kind) for kind in ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"))
"""The types that are accepted. Integers of 64 bits are refused: float32 would hold only some of them."""
NUMBERS = "integers of 8 to 32 bits and floating point of 16 to 64"
ROUNDING = 2.0**-24
"""The largest relative change of a number that becomes the nearest float32."""
NOT_MEASURED = ("palette", "grey with 0 as white", "YCbCr", "CIELab")
"""Colours whose numbers mean something only by a rule that reading applies."""


def refusal_of_numbers(header: Header, channels: int) -> str:
    """Why the numbers of a file cannot be an image of so many `channels`; empty if they can."""
    if header.format != "TIFF":
        return (
            f"{header}, where the data set's `bits` says 32: accepted with it are TIFF and .npy; give such images a "
            "data set without `bits`"
        )
    widest = {"u": 32, "i": 32, "f": 64}.get(header.numbers, 0)
    if not 8 <= header.bits <= widest:
        return f"{header}; accepted with `bits: 32` are {NUMBERS}"
    if header.colors in NOT_MEASURED:
        return f"{header}; accepted with `bits: 32` are grey, RGB and bands, whose numbers are taken as they are"
    if header.bands != channels:
        return (
            f"{header}, where the data set's `channels` says {channels}; with `bits: 32`, every band is taken and none "
            f"is made: write `channels: {header.bands}`"
        )
    return ""


def as_float32(path: Path | str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Numbers of `NUMBER_TYPES` as float32: exact, but for 64 bits the nearest.

    Raises: `DataError` for NaN and infinity, for integers that float32 does not hold, and for numbers of 64 bits that
    are too large or too small for it.
    """
    values = np.asarray(values)
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        not_a_number = int(np.isnan(values).sum())
        infinite = int((~finite).sum()) - not_a_number
        found = [f"{count:,} {what}" for count, what in ((not_a_number, "NaN"), (infinite, "infinite")) if count]
        raise DataError(
            f"of its {values.size:,} numbers, {' and '.join(found)}; accepted are finite ones. Where these "
            "mark pixels without data, write a number in their place, such as the mean of the channel, and "
            "ignore_index into the mask",
            file=path,
        )
    with np.errstate(over="ignore", under="ignore"):
        floats = values.astype(np.float32)
    if values.dtype.itemsize < 4 or values.dtype == np.float32:
        return floats
    change = np.abs(floats.astype(np.float64) - values)
    wrong = change > (np.abs(values) * ROUNDING if values.dtype.kind == "f" else 0)
    if wrong.any():
        raise DataError(
            f"holds {values[wrong][0]}, and {int(wrong.sum()):,} such numbers in all, which float32 does not "
            "hold (whole numbers: all up to 16,777,216); scale them, or subtract an offset, and write them as float32",
            file=path,
        )
    return floats
