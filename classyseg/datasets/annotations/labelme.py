"""labelme's files: one JSON for each image, with polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import ImageDraw
from pydantic import Field
from torch import Tensor

from classyseg.config import MAX_CHANNELS
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.annotations.annotated_images import AnnotatedImages, no_labels, part_of
from classyseg.datasets.annotations.class_labels import BACKGROUND, Classes, ClassLabels, Order
from classyseg.datasets.annotations.drawing import pillow_patch, png_mask, points_of, thin_object
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.annotations.image_files import ImageFiles, report_missing
from classyseg.datasets.annotations.patches import AnnotatedObject, Annotation, Patch
from classyseg.datasets.classy_dataset import Palette
from classyseg.datasets.files.images import IMAGE_SUFFIXES, Bits, read_image
from classyseg.datasets.files.json_file import JsonFile, in_words
from classyseg.datasets.files.outlines import Outline, refuse_outside
from classyseg.datasets.files.pairs import ImageAndMask, files_by_name
from classyseg.datasets.recognition.roles import divided_anew, part_named
from classyseg.datasets.splits import Split
from classyseg.errors import DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

MAX_BYTES = 2**29
"""What a file may have: it may hold its image."""
IGNORE, OWN_BACKGROUND = "__ignore__", "_background_"
"""labelme's own names, in its list of labels, for pixels that are ignored and for the background."""
POINTS = {"rectangle": (2, 2), "circle": (2, 2), "oriented_rectangle": (4, 4), "polygon": (3, None), "mask": (2, 2)}
"""The least and the most points of each type of shape."""


@DATASETS.register("labelme")
class Labelme(AnnotatedImages):
    """A folder of labelme: `a.json` annotates the image that it names, `a.jpg`, or has it within itself.

    Polygons, rectangles, circles and masks are drawn by Pillow, as labelme draws them. The label `__ignore__` is
    ignored, and `_background_` is the background. Images without a JSON file are not annotated yet, and left alone.

    Args:
        root: The folder.
        annotations: The folder of the JSON files, in `root`: another one than that of the images if labelme was
            called with `--output`.
        nested: Search its subfolders, too.
        split: Takes a part of the images, such as `{part: train, val: 0.2}`: see key `split`.
        line_width: How wide lines are drawn, and points, in pixels: labelme's own conversion takes 10. 0 leaves them
            out; null: they are an error.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        annotations: str = ".",
        nested: bool = False,
        split: Split | None = None,
        classes: Classes = None,
        background: str | None = BACKGROUND,
        ignore: tuple[str, ...] = (),
        order: Order = "file",
        line_width: Annotated[int, Field(ge=0, le=1000)] | None = None,
        ignore_index: int = 255,
        palette: Palette | None = None,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        bits: Bits = 8,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
        with within("annotations"):
            start = data_folder(str(folder / annotations))
        files = list(files_by_name(start, (".json",), "annotation", nested=nested).values())
        found = labels_in(files) if classes is None else []
        if classes is None and not found:
            raise no_labels(start)
        labels = ClassLabels.of(classes, background, ignore, order, ignore_index, found=found)
        labels = labels.with_labels({IGNORE: ignore_index, OWN_BACKGROUND: labels.rest})
        self._line_width = line_width
        self._files = ImageFiles(folder)
        pairs = self._pairs(files, start)
        pairs = part_of(pairs, [image for image, _ in pairs], split, folder)
        super().__init__(pairs, labels, palette, channels, bits, transforms)

    def _pairs(self, files: list[Path], start: Path) -> list[ImageAndMask]:
        """Each JSON file with its image: that of the same name next to it, else the one that it names, else itself."""
        pairs: list[ImageAndMask] = []
        missing: list[str] = []
        owners: dict[Path, Path] = {}
        by_stem: dict[tuple[Path, str], list[Path]] = {}
        for folder in dict.fromkeys(file.parent for file in files):
            for path in folder.iterdir():
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    by_stem.setdefault((folder, path.stem), []).append(path)
        for file in files:
            alike = by_stem.get((file.parent, file.stem), [])
            image = alike[0] if len(alike) == 1 else self._named(_json(file))
            if image is None:
                missing.append(str(file))
                continue
            if image in owners:
                raise DataError(f"annotates {image}, and so does {owners[image]}; keep one of them", file=file)
            owners[image] = file
            pairs.append((image, file))
        report_missing(start, start, missing, len(files))
        return pairs

    def _named(self, file: JsonFile) -> Path | None:
        """The image that a file names; the file itself if it holds its image, and None if there is neither."""
        written = file.text("the file", file.contents, "imagePath")
        try:
            found = self._files.find(written, file.path.parent)
        except DataError as error:
            if file.contents.get("imageData") is None:
                file.refuse(str(error))
            found = None
        if found is None and file.contents.get("imageData") is not None:
            return file.path
        return found

    def files(self, index: int) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(super().files(index)))

    def load_image(self, index: int) -> Tensor:
        image, path = self.pairs[index]
        if image != path:
            return super().load_image(index)
        data = _json(image).contents.get("imageData")
        try:
            content = base64.b64decode(data, validate=True)
            return read_image(content, channels=self.channels, bits=self.bits, exif=self.exif)
        except (TypeError, binascii.Error) as error:
            raise DataError(f"its imageData cannot be read ({error})", file=image) from None
        except DataError as error:
            raise DataError(f"its imageData: {error}", file=image) from None

    def told_size(self, index: int) -> tuple[int, int] | None:
        path = self.pairs[index][1]
        return None if path is None else _size_in(_json(path))

    def annotation(self, index: int) -> Annotation:
        image, path = self.pairs[index]
        assert path is not None
        file = _json(path)
        shapes = shapes_of(file)
        if image != path:
            self._check_image(file, image)
        size = _size_in(file)
        if size is not None:
            height, width = size
        else:
            height, width = self.load_image(index).shape[-2:] if image == path else self.shown_size(image)
        return Annotation(height, width, list(self._objects(file, shapes)))

    def _check_image(self, file: JsonFile, image: Path) -> None:
        """Raises: `DataError` if the file names an image that exists, and is another than `image`."""
        written = file.text("the file", file.contents, "imagePath")
        try:
            named = self._files.find(written, file.path.parent)
        except DataError:  # a path of the machine where it was made: the image next to it is meant
            return
        if named is not None and not named.samefile(image):
            file.refuse(f"its imagePath is {shown(written, MAX_NAME)}, but it is called as {image.name} is; rename it")

    def _objects(self, file: JsonFile, shapes: list[Any]) -> Iterator[AnnotatedObject]:
        for i, shape in enumerate(shapes):
            label = file.text(f"shape {i}", shape, "label")
            kind = shape.get("shape_type") or "polygon"  # old files have none
            place = f"shape {i}, '{label}'"
            if kind in ("line", "linestrip", "point"):
                yield from thin_object(place, label, kind, partial(_points, shape, 1, None), self._line_width)
            else:
                yield AnnotatedObject(place, label, partial(_drawn, shape, kind))


def shapes_of(file: JsonFile) -> list[Any]:
    """The shapes of a file of labelme. Raises: `DataError` for another file."""
    if not isinstance(file.contents, dict) or not isinstance(file.contents.get("shapes"), list):
        file.refuse("is no file of labelme: it has no list 'shapes'")
    shapes: list[Any] = file.contents["shapes"]
    return shapes


def labels_in(files: list[Path]) -> list[str]:
    """The labels of all shapes in files of labelme, sorted, without labelme's own names."""
    found: set[str] = set()
    for path in files:
        file = _json(path)
        found |= {file.text(f"shape {i}", shape, "label") for i, shape in enumerate(shapes_of(file))}
    return sorted(found - {IGNORE, OWN_BACKGROUND})


def _points(shape: dict[str, Any], least: int, most: int | None, height: int, width: int) -> Outline:
    found = points_of(shape.get("points"), height, width, least=least, most=most)
    refuse_outside("it", found, height, width)
    return found


def _drawn(shape: dict[str, Any], kind: object, height: int, width: int) -> Patch:
    if not isinstance(kind, str) or kind not in POINTS:
        raise DataError(f"its shape_type is {in_words(kind)}; accepted: {', '.join(POINTS)}, and lines with line_width")
    if kind == "circle":  # its second point, on the circle, may lie outside
        points = points_of(shape.get("points"), height, width, least=2, most=2)
        radius = float(np.hypot(*(points[0] - points[1])))
        refuse_outside("it", np.array([points[0] - radius, points[0] + radius]), height, width)
    else:
        points = _points(shape, *POINTS[kind], height, width)
    if kind == "mask":
        return _mask(shape, points, height, width)
    return pillow_patch(partial(_draw, kind, [(float(x), float(y)) for x, y in points]), height, width)


def _draw(kind: str, xy: list[tuple[float, float]], canvas: ImageDraw.ImageDraw) -> None:
    if kind == "circle":
        (x, y), (px, py) = xy
        radius = ((x - px) ** 2 + (y - py) ** 2) ** 0.5
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = xy
        canvas.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=1, fill=1)
    else:
        canvas.polygon(xy, outline=1, fill=1)


def _mask(shape: dict[str, Any], points: Outline, height: int, width: int) -> Patch:
    """The mask of a shape: a PNG in base64 for the box between two points, whose pixels belong to it."""
    (left, top), (right, bottom) = points.astype(np.int64).tolist()
    if not isinstance(shape.get("mask"), str):
        raise DataError(f"its mask is {in_words(shape.get('mask'))}; expected a PNG in base64")
    mask = png_mask(shape["mask"], height, width)
    if mask.shape != (bottom - top + 1, right - left + 1):
        raise DataError(
            f"its mask has {mask.shape[1]} x {mask.shape[0]} pixels, but its points a box of {right - left + 1} x "
            f"{bottom - top + 1}"
        )
    if left < 0 or top < 0 or right >= width or bottom >= height:
        raise DataError(f"its mask reaches out of the image of {width} x {height}")
    return Patch.of(mask, top, left)


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as labelme's files; None if it has none."""
    for nested in (False, True):
        files = sorted(folder.rglob("*.json") if nested else folder.glob("*.json"))
        some = [_is_labelme(path) for path in files[:: max(len(files) // 20, 1)][:20]]
        if some and all(some):
            break
    else:
        return None
    try:
        labels = labels_in(files)
    except DataError as error:
        why = f"it has {len(files)} files as labelme writes them, but: {error}"
        return Found("labelme", 0.5, why, {"root": str(folder)}, len(files))
    config: dict[str, Any] = {"root": str(folder), "classes": labels}
    names = {path.parent.relative_to(folder).parts[:1] for path in files}
    parts = {}
    if nested:
        config["nested"] = True
        parts = {
            part: {"annotations": name[0]}
            for name in sorted(names)
            if name and (part := part_named(name[0])) is not None
        }
    kinds = {shape.get("shape_type") for path in files[:200] for shape in shapes_of(_json(path))}
    if kinds & {"line", "linestrip", "point"}:
        config["line_width"] = 10
    why = f"{len(files)} JSON files with shapes of {len(labels)} labels, as labelme writes them"
    if len(parts) == len(names) or not parts:
        return Found("labelme", 0.95, why, config, len(files), parts)
    folders = ["/".join(name) or "." for name in sorted(names)]
    return Found("labelme", 0.95, why, config, len(files), notes=(divided_anew("folders", folders),))


def _size_in(file: JsonFile) -> tuple[int, int] | None:
    """The height and width of the image, as the file says. Raises: `DataError`."""
    keys = ("imageHeight", "imageWidth")
    if any(file.contents.get(key) is None for key in keys):
        return None
    height, width = (file.number("the file", file.contents, key) for key in keys)
    return height, width


def _json(path: Path) -> JsonFile:
    return JsonFile(path, constants=True, max_bytes=MAX_BYTES)


def _is_labelme(path: Path) -> bool:
    try:
        file = _json(path)
        return isinstance(file.contents, dict) and "imagePath" in file.contents and shapes_of(file) is not None
    except DataError:
        return False
