"""Objects of annotations, and the pixels that each covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Patch(NamedTuple):
    """The pixels of an object: `mask`, bool (h, w), is the part of an image that begins at row `top`, column `left`."""

    top: int
    left: int
    mask: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, mask: npt.NDArray[Any], top: int = 0, left: int = 0) -> Patch:
        """The part of a mask that has pixels; `top` and `left` say where the mask itself begins."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not rows.size:
            return NO_PIXELS
        part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(top + int(rows[0]), left + int(columns[0]), part.astype(bool, copy=False))


NO_PIXELS = Patch(0, 0, np.zeros((0, 0), dtype=bool))


class AnnotatedObject(NamedTuple):
    """One object of an image.

    `place` is what messages call it, such as `annotation 17`. An `ignored` object is ignored whatever its label is.
    `draw` takes the height and the width of the image; it
    raises `DataError` for an object that cannot be drawn, and names neither the file nor the place.
    """

    place: str
    label: str
    draw: Callable[[int, int], Patch]
    ignored: bool = False


class Annotation(NamedTuple):
    """What is annotated in one image: its `height` and `width` in pixels, and its objects from bottom to top."""

    height: int
    width: int
    objects: Sequence[AnnotatedObject]
