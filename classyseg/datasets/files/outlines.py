"""The masks of COCO's annotations: run lengths and polygons, drawn as COCO's own tools draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from classyseg.datasets.files.filled_polygons import check_steps
from classyseg.datasets.files.json_file import finite, in_words
from classyseg.errors import DataError

Mask = npt.NDArray[np.bool_]
Outline = npt.NDArray[np.float64]
EXPECTED = "polygons such as [[x, y, x, y, x, y]], or run lengths {counts: ..., size: [height, width]}"
POINTS_PER_PIXEL = 5
"""COCO draws outlines on a grid that is five times as fine, and keeps the points on centre lines of pixels."""
MAX_BITS = 60
"""The largest number of a run length."""
MAX_SIZES_AWAY = 10
"""Points further away are mistakes: their outlines might not fit into memory."""


class Drawn(NamedTuple):
    """The pixels (height, width) of a `segmentation`, its polygons, and the numbers of those that cover no pixel.

    Run lengths have no polygons.
    """

    mask: Mask
    polygons: list[Outline]
    missed: list[int]


def annotation_mask(segmentation: Any, height: int, width: int) -> Drawn:
    """Draws a `segmentation`: polygons, or run lengths as a list or as COCO's text.

    Raises: `DataError` for anything else. The caller adds the file and the annotation.
    """
    if isinstance(segmentation, dict):
        return Drawn(segmentation_runs(segmentation, height, width), [], [])
    mask = np.zeros((height, width), dtype=bool)
    polygons, missed = outlines(segmentation, height, width), []
    for i, outline in enumerate(polygons):
        covered = outline_mask(outline, height, width)
        missed += [] if covered.any() else [i]
        mask |= covered
    return Drawn(mask, polygons, missed)


def segmentation_runs(segmentation: dict[str, Any], height: int, width: int) -> Mask:
    """The mask of a `segmentation` of run lengths. Raises: `DataError`."""
    return run_length_mask(_counts_of(segmentation, height, width), height, width)


def outlines(segmentation: Any, height: int, width: int) -> list[Outline]:
    """The polygons of a `segmentation`, each as points (N, 2) of x and y. Raises: `DataError` for anything else."""
    if not isinstance(segmentation, list):
        raise DataError(f"its segmentation is {in_words(segmentation)}; expected {EXPECTED}")
    if not segmentation:
        raise DataError("its segmentation is empty: it has no outline; draw one, or take the annotation out")
    flat = [value for value in segmentation if not isinstance(value, list)]
    if flat:
        raise DataError(
            f"its segmentation is a list with {in_words(flat[0])} in it, not a list of polygons; expected {EXPECTED}"
        )
    return [_outline_of(i, polygon, height, width) for i, polygon in enumerate(segmentation)]


def _outline_of(number: int, polygon: list[Any], height: int, width: int) -> Outline:
    wrong = [value for value in polygon if not finite(value)]
    if wrong:
        raise DataError(f"its polygon {number} has {in_words(wrong[0])} among its numbers; expected {EXPECTED}")
    if len(polygon) < 6 or len(polygon) % 2:
        raise DataError(
            f"its segmentation has a polygon of {len(polygon)} numbers (polygon {number}); expected x and y of three "
            "points or more"
        )
    limit = MAX_SIZES_AWAY * (height + width)
    if not all(-limit <= value <= limit for value in polygon):
        raise DataError(f"its polygon {number} has a point far outside the image of {width} x {height} pixels")
    return np.array(polygon, dtype=np.float64).reshape(-1, 2)


def refuse_outside(what: str, points: Outline, height: int, width: int) -> None:
    """Raises: `DataError` for points that all lie on one side of the image; `what` names their object."""
    left, top, wide, high = extent(points)
    if left > width or top > height or left + wide < 0 or top + high < 0:
        raise DataError(f"{what} lies outside the image of {width} x {height} pixels")


def extent(points: Outline) -> tuple[float, float, float, float]:
    """The box of points: x, y, width and height."""
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right - left, bottom - top


def area(points: Outline) -> float:
    """The area of an outline, by the shoelace formula."""
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def is_flat(points: Outline) -> bool:
    """Whether all points lie on one line, or are one."""
    away = points - points[0]
    longest = away[np.square(away).sum(axis=1).argmax()]
    across = np.abs(away[:, 0] * longest[1] - away[:, 1] * longest[0]).max()
    return bool(across <= 1e-9 * max(np.square(longest).sum(), 1e-9))


def _counts_of(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    """The run lengths of a `segmentation`. Raises: `DataError` for another size than the image's, and for no counts."""
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not (isinstance(size, list) and [type(side) for side in size] == [int, int] and size == [height, width]):
        found = size if isinstance(size, list) and len(size) <= 4 else in_words(size)
        raise DataError(f"its run lengths are of the size {found}; the image's is [{height}, {width}], rows first")
    if isinstance(counts, str):
        return decoded_counts(counts)
    if not isinstance(counts, list) or any(type(count) is not int or not finite(count) for count in counts):
        raise DataError("its run lengths, 'counts', are neither a list of whole numbers nor COCO's text")
    return counts


def decoded_counts(text: str) -> list[int]:
    """COCO's text of run lengths: groups of 5 bits, lowest first.

    From the fourth on, a number is the difference to the last but one. Raises: `DataError` for other texts.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DataError(f"its run lengths are a text with {character!a} in it, which COCO's texts never have")
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > MAX_BITS:
            raise DataError("its run lengths are a text with a number that no image has pixels for")
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise DataError("its run lengths are a text that was cut off")
    return counts


def run_length_mask(counts: Sequence[int], height: int, width: int) -> Mask:
    """The mask of run lengths, which go column by column and begin with background."""
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise DataError(f"its run lengths are of {sum(counts)} pixels, not of {height} x {width}")
    runs = np.arange(len(counts)) % 2 == 1
    return np.repeat(runs, counts).reshape(width, height).T


def outline_mask(points: Outline, height: int, width: int) -> Mask:
    """The mask of an outline (N, 2). In each column, a pixel is inside after an odd number of crossings.

    Raises: `DataError` for an outline that is too long.
    """
    mask = np.zeros((height, width), dtype=bool)
    left, inside = outline_columns(points, height, width)
    mask[:, left : left + inside.shape[1]] = inside
    return mask


def outline_columns(points: Outline, height: int, width: int) -> tuple[int, Mask]:
    """The part of `outline_mask` that may have pixels: its first column, and the mask from there on."""
    corners = (points * POINTS_PER_PIXEL + 0.5).astype(np.int64)
    ends = np.roll(corners, -1, axis=0)
    check_steps(int(np.abs(ends - corners).max(axis=1).sum()))
    x, y = _outline(corners, ends)
    step = np.flatnonzero(x[1:] != x[:-1])
    column = (np.where(x[step + 1] < x[step], x[step + 1], x[step + 1] - 1) + 0.5) / POINTS_PER_PIXEL - 0.5
    row = np.ceil(((np.minimum(y[step], y[step + 1]) + 0.5) / POINTS_PER_PIXEL - 0.5).clip(0, height))
    kept = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    column, row = column[kept].astype(np.int64), row[kept].astype(np.int64)
    if not column.size:
        return 0, np.zeros((height, 0), dtype=bool)
    left = int(column.min())
    right = width if column.size % 2 else int(column.max()) + 1  # an open one goes on to the end, as in COCO's tools
    crossings = (column - left) * height + row
    inside = np.zeros(height * (right - left), dtype=bool)
    first, last = crossings.min(), inside.size if len(crossings) % 2 else crossings.max()
    counts = np.bincount(crossings - first, minlength=last - first + 1).cumsum()
    inside[first:last] = counts[: last - first] % 2 == 1
    return left, inside.reshape(right - left, height).T


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
