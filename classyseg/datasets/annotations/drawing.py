"""The pixels of polygons, boxes, circles and run lengths, each drawn as the tool that wrote it draws it itself.

COCO's outlines (CVAT, COCO JSON) leave out about half of the border's pixels. Pillow (labelme) and OpenCV (Ultralytics,
Supervisely) fill the border, too. So the same polygon differs by up to a pixel all around.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from classyseg.console import shown
from classyseg.datasets.annotations.patches import NO_PIXELS, AnnotatedObject, Patch
from classyseg.datasets.files.filled_polygons import filled_polygons
from classyseg.datasets.files.headers import png_header
from classyseg.datasets.files.json_file import finite, in_words
from classyseg.datasets.files.outlines import (
    MAX_SIZES_AWAY,
    Outline,
    outline_columns,
    outlines,
    refuse_outside,
    segmentation_runs,
)
from classyseg.errors import DataError


def segmentation_patch(segmentation: Any, height: int, width: int) -> Patch:
    """The pixels of a `segmentation` of COCO: polygons, none outside the image, or run lengths."""
    if isinstance(segmentation, dict):
        return Patch.of(segmentation_runs(segmentation, height, width))
    return coco_patch(outlines(segmentation, height, width), height, width)


def coco_patch(polygons: Sequence[Outline], height: int, width: int) -> Patch:
    """The union of polygons, drawn as `pycocotools` draws them."""
    parts = []
    for i, points in enumerate(polygons):
        refuse_outside(f"its polygon {i}", points, height, width)
        parts.append(outline_columns(points, height, width))
    first = min((left for left, part in parts if part.size), default=0)
    last = max((left + part.shape[1] for left, part in parts), default=0)
    mask = np.zeros((height, max(last - first, 0)), dtype=bool)
    for left, part in parts:
        if part.size:
            mask[:, left - first : left - first + part.shape[1]] |= part
    return Patch.of(mask, 0, first)


def opencv_patch(
    points: npt.NDArray[np.int64], holes: Sequence[npt.NDArray[np.int64]], height: int, width: int
) -> Patch:
    """A polygon without its holes, each filled with its border as `cv2.fillPoly` fills it."""
    top, left, mask = filled_polygons([points], height, width)
    if holes and mask.size:
        hole_top, hole_left, inside = filled_polygons(holes, height, width)
        cut = np.zeros((height, width), dtype=bool)
        cut[hole_top : hole_top + inside.shape[0], hole_left : hole_left + inside.shape[1]] = inside
        mask = mask & ~cut[top : top + mask.shape[0], left : left + mask.shape[1]]
    return Patch.of(mask, top, left)


def pillow_patch(draw: Callable[[ImageDraw.ImageDraw], object], height: int, width: int) -> Patch:
    """What `draw` draws with the value 1 into an image, by Pillow."""
    image = Image.new("L", (width, height))
    draw(ImageDraw.Draw(image))
    box = image.getbbox()
    if box is None:
        return NO_PIXELS
    return Patch(box[1], box[0], np.asarray(image.crop(box)) > 0)


def png_mask(text: str, height: int, width: int) -> npt.NDArray[np.bool_]:
    """A mask that is a PNG in base64, perhaps compressed by zlib: the pixels of its alpha, else those above 0.

    Raises: `DataError`, also for one that is larger than the image of `height` and `width`.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("its mask is no text in base64") from None
    if not content.startswith(b"\x89PNG"):
        reader = zlib.decompressobj()
        try:
            content = reader.decompress(content, 8 * height * width + 2**16)
        except zlib.error as error:
            raise DataError(f"its mask cannot be read ({error})") from None
    try:
        header = png_header(io.BytesIO(content))
        if header.width > width or header.height > height:
            raise DataError(
                f"its mask has {header.width} x {header.height} pixels, more than the image of {width} x {height}"
            )
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.mode in ("RGBA", "LA") or "transparency" in image.info:
                return np.asarray(image.convert("RGBA"))[..., 3] > 0
            if image.mode in ("1", "L", "P", "I", "I;16"):
                return np.asarray(image) > 0
    except DataError:
        raise
    except Exception as error:  # Pillow may raise anything for broken bytes
        raise DataError(f"its mask cannot be read ({error})") from None
    raise DataError(f"its mask is a PNG of {header}; expected one channel, or alpha")


def points_of(value: Any, height: int, width: int, *, least: int = 3, most: int | None = None) -> Outline:
    """A list of points [x, y] as (N, 2). Raises: `DataError` for anything else, and for points that are far away."""
    if not isinstance(value, list):
        raise DataError(f"its points are {in_words(value)}; expected a list of [x, y]")
    for i, point in enumerate(value):
        if not isinstance(point, list) or len(point) != 2:
            found = f"a list of {len(point)}" if isinstance(point, list) else in_words(point)
            raise DataError(f"its point {i} is {found}; expected [x, y]")
        if not (finite(point[0]) and finite(point[1])):
            wrong = point[1] if finite(point[0]) else point[0]
            raise DataError(f"its point {i} has {in_words(wrong)} where a number is expected")
    return checked_points(np.array(value, dtype=np.float64).reshape(-1, 2), height, width, least=least, most=most)


def checked_points(points: Outline, height: int, width: int, *, least: int = 3, most: int | None = None) -> Outline:
    """The points (N, 2). Raises: `DataError` for too few or too many, or for one that is far from the image."""
    if len(points) < least or (most is not None and len(points) > most):
        expected = f"{least}" if most == least else f"{least} or more"
        raise DataError(f"it has {len(points)} point{'s' * (len(points) != 1)}; expected {expected}")
    if not (np.abs(points) <= MAX_SIZES_AWAY * (height + width)).all():
        raise DataError(f"it has a point far outside the image of {width} x {height} pixels")
    return points


def box_points(x0: float, y0: float, x1: float, y1: float) -> Outline:
    """The corners of a box as a polygon."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def thin_object(
    place: str, label: str, kind: str, points: Callable[[int, int], Outline], line_width: int | None
) -> Iterator[AnnotatedObject]:
    """The object of a line or a point: `points` gives its points for a height and a width.

    It is drawn `line_width` wide, as labelme draws lines; 0 gives no object; without a width, it cannot be drawn.
    """

    def draw(height: int, width: int) -> Patch:
        found = points(height, width)
        if line_width is None:
            raise DataError(
                f"it is a {kind}, which has no area; give line_width: a number of pixels, or 0 to leave such shapes out"
            )
        return pillow_patch(partial(_draw_thin, found, line_width), height, width)

    if line_width != 0:
        yield AnnotatedObject(place, label, draw)


def _draw_thin(points: Outline, line_width: int, canvas: ImageDraw.ImageDraw) -> None:
    xy = [(float(x), float(y)) for x, y in points]
    if len(xy) > 1:
        canvas.line(xy, fill=1, width=line_width)
        return
    radius = line_width / 2
    (x, y), *_ = xy
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)


NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


def numbers_in(text: str, separators: str) -> list[float]:
    """The numbers of a text. Raises: `DataError` for anything else between the separators, also for NaN."""
    words = [word.strip() for word in re.split(f"[{separators}]", text)] if text.strip() else []
    wrong = [word for word in words if not NUMBER.fullmatch(word)]
    if wrong:
        raise DataError(f"has {shown(wrong[0])} among its numbers")
    return [float(word) for word in words]
