"""The masks of COCO's annotations: run lengths and polygons, drawn as COCO's own tools draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from classyseg.config import DataError

Mask = npt.NDArray[np.bool_]
POINTS_PER_PIXEL = 5
"""COCO draws outlines on a grid that is five times as fine, and keeps the crossings of the pixels' centre lines."""
MAX_SIZES_AWAY = 10
"""Points further away are mistakes, whose outline might not fit into memory."""


def annotation_mask(segmentation: Any, height: int, width: int) -> Mask:
    """The pixels (height, width) of a `segmentation`: polygons, or run lengths as a list or as COCO's text.

    Raises: `DataError` for anything else, which the caller completes with the file and the annotation.
    """
    if isinstance(segmentation, list):
        mask = np.zeros((height, width), dtype=bool)
        for polygon in segmentation:
            mask |= polygon_mask(polygon, height, width)
        return mask
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if isinstance(counts, str):
        counts = decoded_counts(counts)
    if not isinstance(counts, list) or list(segmentation.get("size", ())) != [height, width]:
        raise DataError(
            f"its segmentation is neither polygons nor run lengths of the image's size ({height} x {width})"
        )
    return run_length_mask(counts, height, width)


def decoded_counts(text: str) -> list[int]:
    """COCO's text of run lengths: groups of 5 bits, lowest first.

    From the fourth on, a number is the difference to the last but one.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return counts


def run_length_mask(counts: Sequence[int], height: int, width: int) -> Mask:
    """The mask of run lengths, column by column, that begin with background."""
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise DataError(f"its run lengths are of {sum(counts)} pixels, not of {height} x {width}")
    runs = np.arange(len(counts)) % 2 == 1
    return np.repeat(runs, counts).reshape(width, height).T


def polygon_mask(polygon: Sequence[float], height: int, width: int) -> Mask:
    """The mask of a polygon x0, y0, x1, y1, ...: what an odd number of crossings precedes, column by column."""
    if len(polygon) < 6 or len(polygon) % 2:
        raise DataError(f"its segmentation has a polygon of {len(polygon)} numbers; three points have six")
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    if not (np.abs(points) <= MAX_SIZES_AWAY * (height + width)).all():
        raise DataError(f"its segmentation has a point far outside the image of {height} x {width}")
    corners = (points * POINTS_PER_PIXEL + 0.5).astype(np.int64)
    x, y = _outline(corners, np.roll(corners, -1, axis=0))
    step = np.flatnonzero(x[1:] != x[:-1])
    column = (np.where(x[step + 1] < x[step], x[step + 1], x[step + 1] - 1) + 0.5) / POINTS_PER_PIXEL - 0.5
    row = np.ceil(((np.minimum(y[step], y[step + 1]) + 0.5) / POINTS_PER_PIXEL - 0.5).clip(0, height))
    kept = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    crossings = (column[kept] * height + row[kept]).astype(np.int64)
    inside = np.zeros(height * width, dtype=bool)
    if len(crossings):
        first, last = crossings.min(), height * width if len(crossings) % 2 else crossings.max()
        counts = np.bincount(crossings - first, minlength=last - first + 1).cumsum()
        inside[first:last] = counts[: last - first] % 2 == 1
    return inside.reshape(width, height).T


def _outline(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """The points of the edges from each `start` to its `end`, one for each step along an edge's longer side."""
    delta = end - start
    steps = np.abs(delta).max(axis=1)
    start, delta, steps = (values[steps > 0] for values in (start, delta, steps))
    flat = np.abs(delta[:, 0]) >= np.abs(delta[:, 1])
    # Each edge is drawn from its lower end along its longer side, so that rounding does not depend on its direction.
    backward = np.where(flat, delta[:, 0], delta[:, 1]) < 0
    origin = np.where(backward[:, None], start + delta, start)
    slope = np.where(flat, delta[:, 1], delta[:, 0]) / np.where(flat, delta[:, 0], delta[:, 1])
    edge = np.repeat(np.arange(len(steps)), steps + 1)
    along = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - (steps + 1), steps + 1)
    along = np.where(backward[edge], steps[edge] - along, along)
    main, cross = np.where(flat, 0, 1), np.where(flat, 1, 0)
    edges = np.arange(len(steps))
    longer = origin[edges, main][edge] + along
    shorter = (origin[edges, cross][edge] + slope[edge] * along + 0.5).astype(np.int64)
    return np.where(flat[edge], longer, shorter), np.where(flat[edge], shorter, longer)
