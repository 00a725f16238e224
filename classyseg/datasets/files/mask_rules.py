"""Which files are masks, and which labels their numbers may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from classyseg.datasets.files.headers import Header
from classyseg.errors import DataError

MAX_WHOLE = 2**53
"""From here on, floating point cannot hold all whole numbers."""


def check_mask_of_values(path: Path | str, header: Header, turned: int) -> None:
    """Raises: `DataError` unless a file is of numbers that may be labels."""
    check_mask_of_channels(path, header, turned)
    if header.colors == "grey with 0 as white":
        raise DataError(
            "a mask in which 0 means white: viewers invert it, so nobody knows which numbers are meant; "
            "accepted: 0 means black (PhotometricInterpretation 1); save it again so, or as PNG",
            file=path,
        )
    if not holds_labels(header):
        raise DataError(
            f"a mask that is {header}; accepted are images of one channel or with a palette, whose values "
            "are class indices",
            file=path,
        )


def mask_values(path: Path | str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The stored values of a mask as integers. Raises: `DataError` for numbers that are no class index."""
    if values.dtype.kind == "f":
        return _whole_numbers(path, values)
    if values.dtype == np.uint64 and values.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"a mask with the value {values.max()}; accepted are numbers up to 2**63 - 1", file=path)
    return values


def _whole_numbers(path: Path | str, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Class indices that a program wrote in floating point. Raises: `DataError` for numbers that are not whole."""
    values = values.astype(np.float64)
    whole = (np.abs(values) < MAX_WHOLE) & (np.trunc(values) == values)  # both are false for NaN
    if not whole.all():
        raise DataError(
            f"a mask in floating point with {int((~whole).sum())} pixels that are no whole number, such as "
            f"{values[~whole][0]}; accepted are class indices; save it as integers",
            file=path,
        )
    return values.astype(np.int64)


def holds_labels(header: Header) -> bool:
    """Whether a file is of numbers that may be labels."""
    return header.bands == 1 and header.numbers in "uif" and header.colors in ("grey", "palette")


def holds_colors(header: Header) -> bool:
    """Whether a file is of colours of 8 bits as they are stored: RGB, with or without alpha, or a palette."""
    if header.colors == "palette":
        return header.bands == 1
    return header.colors == "RGB" and header.bits == 8 and header.numbers == "u" and header.extra in ((), ("alpha",))


def check_mask_of_colors(path: Path | str, header: Header, turned: int) -> None:
    """Raises: `DataError` unless a file is of colours of 8 bits."""
    check_mask_of_channels(path, header, turned)
    if not holds_colors(header):
        raise DataError(
            f"a mask that is {header}; accepted here are masks of colours (RGB of 8 bits a channel, or a palette)",
            file=path,
        )


def color_numbers(colors: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Colours (H, W, 3) of 8 bits as the numbers of `read_colors`."""
    channels = colors.astype(np.int32)
    return channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]


def check_mask_of_channels(path: Path | str, header: Header, turned: int) -> None:
    """Raises: `DataError` for a file of values that a mask may not lie in, whatever its channels are."""
    if header.lossy:
        raise DataError(
            f"a mask stored as {header.lossy}, which changes labels; accepted are lossless index images, such as PNG",
            file=path,
        )
    if header.images > 1:
        raise DataError(several(header), file=path)
    if turned != 1:
        raise DataError(f"a mask with the EXIF orientation {turned}; save it upright, without one", file=path)


def several(header: Header) -> str:
    """Says that a file of several images is refused."""
    more = " (smaller copies and masks of transparency that name themselves so do not count)"
    return (
        f"several images in one file ({header.format}); accepted are files of one{more * (header.format == 'TIFF')}; "
        "write each image into a file of its own"
    )
