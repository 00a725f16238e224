"""Ellipses, filled as OpenCV's `ellipse` fills them: CVAT draws them so."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Point = tuple[int, int]
BITS = 16
ONE, HALF = 1 << BITS, 1 << (BITS - 1)
"""OpenCV computes in pixels with 16 bits after the point."""


def filled_ellipse(center: Point, radii: Point, rotation: float, height: int, width: int) -> npt.NDArray[np.bool_]:
    """The mask (height, width) of an ellipse of whole pixels, turned by `rotation` degrees.

    It is a polygon of up to 73 points, filled row by row.

    Source: OpenCV, `EllipseEx`, `ellipse2Poly`, `FillConvexPoly`, `Line2`.
    """
    mask = np.zeros((height, width), dtype=bool)
    points = _points((center[0] << BITS, center[1] << BITS), (radii[0] << BITS, radii[1] << BITS), rotation)
    for start, end in zip([points[-1], *points[:-1]], points, strict=True):
        _line(mask, start, end)
    if len(points) > 2:
        _fill(mask, points)
    return mask


def _sine(degrees: int) -> float:
    """As OpenCV's table has it: seven digits, in float32."""
    return float(np.float32(round(math.sin(math.radians(degrees)), 7)))


def _points(center: Point, axes: Point, rotation: float) -> list[Point]:
    angle = round(rotation) % 360
    cosine, sine = _sine(450 - angle), _sine(angle)
    longest = (max(axes) + HALF) >> BITS
    step = 90 if longest < 3 else 30 if longest < 10 else 18 if longest < 15 else 5
    found: list[Point] = []
    for degrees in range(0, 360 + step, step):
        degrees = min(degrees, 360)
        x, y = axes[0] * _sine(450 - degrees), axes[1] * _sine(degrees)
        point = (_rounded(center[0] + x * cosine - y * sine), _rounded(center[1] + x * sine + y * cosine))
        if not found or point != found[-1]:
            found.append(point)
    return found if len(found) > 1 else [center, center]


def _rounded(value: float) -> int:
    whole = round(value / ONE) << BITS
    return whole + round(value - whole)


def _line(mask: npt.NDArray[np.bool_], start: Point, end: Point) -> None:
    """A line between points with 16 bits after the point."""
    height, width = mask.shape
    clipped = _clipped(start, end, (width << BITS) - 1, (height << BITS) - 1)
    if clipped is None:
        return
    (x0, y0), (x1, y1) = clipped
    flat = abs(x1 - x0) > abs(y1 - y0)
    if (x1 < x0) if flat else (y1 < y0):
        x0, y0, x1, y1 = x1, y1, x0, y0
    longer, shorter = (x1 - x0, y1 - y0) if flat else (y1 - y0, x1 - x0)
    step = _quotient(shorter << BITS, longer | 1)
    along = np.arange((longer >> BITS) + 1)
    main, cross = (x0, y0) if flat else (y0, x0)
    main_values, cross_values = ((main + HALF) >> BITS) + along, (cross + HALF + along * step) >> BITS
    x, y = (main_values, cross_values) if flat else (cross_values, main_values)
    x, y = np.append(x, (x1 + HALF) >> BITS), np.append(y, (y1 + HALF) >> BITS)
    seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    mask[y[seen], x[seen]] = True


def _fill(mask: npt.NDArray[np.bool_], points: list[Point]) -> None:
    """Fills a convex polygon between its left and its right side, row by row."""
    height, width = mask.shape
    rows = [(y + HALF) >> BITS for _, y in points]
    top, bottom = min(rows), min(max(rows), height - 1)
    lowest = min(range(len(points)), key=lambda i: points[i][1])
    left_to_go = len(points)
    at, ends, x, slopes = [lowest, lowest], [top, top], [-ONE, -ONE], [0, 0]
    for row in range(top, bottom + 1):
        for side, step in enumerate((1, len(points) - 1)):
            if row < ends[side]:
                continue
            here, there = at[side], (at[side] + step) % len(points)
            while left_to_go > 0:
                left_to_go -= 1
                if rows[there] > row:
                    span = rows[there] - row
                    ends[side], at[side], x[side] = rows[there], there, points[here][0]
                    slopes[side] = _quotient((points[there][0] - points[here][0]) * 2 + span, 2 * span)
                    break
                here, there = there, (there + step) % len(points)
            else:
                return  # no side goes on: the lines around it have drawn the last row
        if row >= 0:
            first, last = (min(x) + HALF) >> BITS, (max(x) + HALF) >> BITS
            if last >= 0 and first < width:
                mask[row, max(first, 0) : last + 1] = True
        x = [value + slope for value, slope in zip(x, slopes, strict=True)]


def _clipped(start: Point, end: Point, right: int, bottom: int) -> tuple[Point, Point] | None:
    """The part of a line in 0 to `right` and 0 to `bottom`; None if there is none."""
    ends = [list(start), list(end)]

    def code(i: int) -> int:
        x, y = ends[i]
        return (x < 0) + (x > right) * 2 + (y < 0) * 4 + (y > bottom) * 8

    codes = [code(0), code(1)]
    for axis, limit, low in ((1, bottom, 4), (0, right, 1)):
        if codes[0] & codes[1] or not codes[0] | codes[1]:
            break
        for i in (0, 1):
            if codes[i] & (low * 3):
                edge = 0 if codes[i] & low else limit
                whole = ends[1][axis] - ends[0][axis]
                across = ends[1][1 - axis] - ends[0][1 - axis]
                ends[i][1 - axis] += int(float(edge - ends[i][axis]) * across / whole)
                ends[i][axis] = edge
                codes[i] = code(i) & 3 if axis == 1 else 0
    return None if codes[0] | codes[1] else ((ends[0][0], ends[0][1]), (ends[1][0], ends[1][1]))


def _quotient(value: int, by: int) -> int:
    """A quotient cut off towards 0, as in C."""
    return abs(value) // abs(by) * (1 if (value < 0) == (by < 0) else -1)
