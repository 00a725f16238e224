"""Polygons of whole pixels, filled with their borders as OpenCV's `fillPoly` does: for Ultralytics and Supervisely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from classyseg.errors import DataError

Points = npt.NDArray[np.int64]
ONE = 1 << 16
"""OpenCV computes where an edge crosses a row with 16 bits after the point."""
MAX_STEPS = 2**24
"""An outline that takes more steps from pixel to pixel is no outline of an object, and would take much memory."""
LEFT, RIGHT, ABOVE, BELOW = 1, 2, 4, 8


class Filled(NamedTuple):
    """The part (h, w) of an image's mask that begins at row `top` and column `left`."""

    top: int
    left: int
    mask: npt.NDArray[np.bool_]


def filled_polygons(polygons: Sequence[Points], height: int, width: int) -> Filled:
    """The pixels of polygons of points (N, 2), x and y: their borders, and what lies in an odd number of them.

    What lies outside of the image is cut off. Raises: `DataError` for an outline that is too long.

    Source: OpenCV 4.13 and 5, `CollectPolyEdges`, `FillEdgeCollection`, `LineIterator` and `clipLine`.
    """
    start, end = np.concatenate([np.roll(points, 1, axis=0) for points in polygons]), np.concatenate(polygons)
    left, top = end.min(axis=0).clip(0, [width, height]).tolist()
    right, bottom = (end.max(axis=0) + 1).clip(0, [width, height]).tolist()
    if right <= left or bottom <= top:
        return Filled(0, 0, np.zeros((0, 0), dtype=bool))
    seen, seen_start, seen_end = _clipped(start, end, height, width)
    check_steps(int(np.abs(seen_end - seen_start).max(axis=1).sum()))
    mask = _inside(start, end, seen_start, seen_end, (left, top, right, bottom))
    x, y = _line_points(seen_start[seen], seen_end[seen])
    mask[y - top, x - left] = True
    return Filled(top, left, mask)


def check_steps(steps: int) -> None:
    """Raises: `DataError` for an outline of so many steps that they would take much memory."""
    if steps > MAX_STEPS:
        raise DataError(f"its outline has {steps:,} steps from pixel to pixel; up to {MAX_STEPS:,} are drawn")


def _inside(start: Points, end: Points, seen_start: Points, seen_end: Points, box: tuple[int, ...]) -> Any:
    """The inside of a polygon within a box of left, top, right and bottom.

    An edge crosses each of its rows but the lowest one. A pixel is inside after an odd number of crossings, or on one.
    The slope of an edge is that of its part in the image, where that is no flat one.
    """
    left, top, right, bottom = box
    slanted = start[:, 1] != end[:, 1]
    start, end, seen_start, seen_end = (each[slanted] for each in (start, end, seen_start, seen_end))
    flat = seen_start[:, 1] == seen_end[:, 1]
    y0, y1 = (np.where(flat, whole[:, 1], part[:, 1]) for whole, part in ((start, seen_start), (end, seen_end)))
    x0, x1 = seen_start[:, 0] * ONE, seen_end[:, 0] * ONE
    slope = (np.abs(x1 - x0) // np.abs(y1 - y0)) * np.sign(x1 - x0) * np.sign(y1 - y0)
    down = start[:, 1] < end[:, 1]
    upper, lower = np.where(down, start[:, 1], end[:, 1]), np.where(down, end[:, 1], start[:, 1])
    crossing = np.where(down, x0 + (start[:, 1] - y0) * slope, x1 + (end[:, 1] - y1) * slope)
    first, last = upper.clip(top, bottom), lower.clip(top, bottom)
    counts = last - first
    check_steps(int(counts.sum()))
    edge = np.repeat(np.arange(len(counts)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    x = crossing[edge] + (row - upper[edge]) * slope[edge]
    columns = right - left + 1
    after = ((x >> 16) + 1).clip(left, right) - left
    changes = np.bincount((row - top) * columns + after, minlength=(bottom - top) * columns).reshape(-1, columns)
    mask = changes[:, :-1].cumsum(axis=1) % 2 == 1
    on = (x % ONE == 0) & (x >= left * ONE) & (x < right * ONE)
    mask[row[on] - top, (x[on] >> 16) - left] = True
    return mask


def _line_points(start: Points, end: Points) -> tuple[Any, Any]:
    """The pixels of lines, each from its left end: one for each step along its longer side."""
    swapped = (end[:, 0] < start[:, 0])[:, None]
    start, end = np.where(swapped, end, start), np.where(swapped, start, end)
    delta = end - start
    steep = np.abs(delta[:, 1]) > delta[:, 0]
    longer, shorter = np.abs(delta).max(axis=1), np.abs(delta).min(axis=1)
    edge = np.repeat(np.arange(len(start)), longer + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(longer + 1) - (longer + 1), longer + 1)
    half = np.maximum(longer, 1)[edge]
    aside = (2 * shorter[edge] * step + half - 1) // (2 * half)
    steep, down = steep[edge], np.where(delta[edge, 1] < 0, -1, 1)
    return start[edge, 0] + np.where(steep, aside, step), start[edge, 1] + np.where(steep, step, aside) * down


def _clipped(start: Points, end: Points, height: int, width: int) -> tuple[Any, Points, Points]:
    """The ends of edges after they were moved into the image, and whether an edge has a part in it."""
    x1, y1, x2, y2 = (values.copy() for values in (*start.T, *end.T))
    right, bottom = width - 1, height - 1

    def sides(x: Points, y: Points) -> Any:
        return (x < 0) * LEFT + (x > right) * RIGHT + (y < 0) * ABOVE + (y > bottom) * BELOW

    def share(part: Any, along: Any, whole: Any) -> Any:
        return np.trunc(part.astype(np.float64) * along / whole).astype(np.int64)

    one, two = sides(x1, y1), sides(x2, y2)
    cut = ((one & two) == 0) & ((one | two) != 0)
    for x, y, code, other_x, other_y in ((x1, y1, one, x2, y2), (x2, y2, two, x1, y1)):
        i = np.flatnonzero(cut & ((code & (ABOVE | BELOW)) != 0))
        edge = np.where(code[i] < BELOW, 0, bottom)
        along, whole = (other_x[i] - x[i], other_y[i] - y[i])
        x[i] += share(edge - y[i], along, whole)
        y[i] = edge
        code[i] = (x[i] < 0) * LEFT + (x[i] > right) * RIGHT
    cut &= ((one & two) == 0) & ((one | two) != 0)
    for x, y, code, other_x, other_y in ((x1, y1, one, x2, y2), (x2, y2, two, x1, y1)):
        i = np.flatnonzero(cut & (code != 0))
        edge = np.where(code[i] == LEFT, 0, right)
        along, whole = (other_y[i] - y[i], other_x[i] - x[i])
        y[i] += share(edge - x[i], along, whole)
        x[i] = edge
        code[i] = 0
    return (one | two) == 0, np.stack([x1, y1], axis=1), np.stack([x2, y2], axis=1)
