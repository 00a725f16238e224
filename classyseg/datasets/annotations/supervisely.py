"""Supervisely's project folders: polygons with holes, bitmaps and rectangles in a JSON file for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from classyseg.config import MAX_CHANNELS, listed, unknown
from classyseg.datasets.annotations.annotated_images import AnnotatedImages, no_labels, part_of
from classyseg.datasets.annotations.class_labels import BACKGROUND, Classes, ClassLabels, Order
from classyseg.datasets.annotations.drawing import opencv_patch, png_mask, points_of, thin_object
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.annotations.patches import AnnotatedObject, Annotation, Patch
from classyseg.datasets.classy_dataset import Palette, color_of
from classyseg.datasets.files.images import IMAGE_SUFFIXES, Bits
from classyseg.datasets.files.json_file import JsonFile, finite, in_words
from classyseg.datasets.files.outlines import refuse_outside
from classyseg.datasets.files.pairs import ImageAndMask, report_fault
from classyseg.datasets.recognition.roles import divided_anew, part_named
from classyseg.datasets.splits import Split
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig
from classyseg.structures import Color

META = "meta.json"
MAX_BYTES = 2**28
MAX_DEPTH = 8
"""Data sets within data sets."""
PARTS_OF_ONE = {"img", "ann", "img_info", "seg", "meta", "blob"}


@DATASETS.register("supervisely")
class Supervisely(AnnotatedImages):
    """A project of Supervisely: `root/meta.json`, `root/DATASET/img/a.jpg`, `root/DATASET/ann/a.jpg.json`.

    Polygons with their holes, rectangles and bitmaps are drawn as Supervisely's own library draws them.

    Args:
        root: The folder of the project.
        folders: The data sets of the project that are taken, such as `[train]`, with those in them; null: all.
        split: Takes a part of the images, such as `{part: train, val: 0.2}`: see key `split`.
        line_width: How wide lines are drawn, and points, in pixels; 0 leaves them out; null: they are an error, as the
            files do not say it.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        folders: tuple[str, ...] | None = None,
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
        colors = _classes(folder / META)
        if classes is None and not colors:
            raise no_labels(folder / META)
        labels = ClassLabels.of(classes, background, ignore, order, ignore_index, found=colors)
        places = _data_sets(folder)
        pairs = _pairs(folder, places if folders is None else _chosen(folder, places, folders))
        pairs = part_of(pairs, [image for image, _ in pairs], split, folder)
        self._line_width = line_width
        known = {label: color for label, color in colors.items() if color is not None}
        super().__init__(pairs, labels, palette, channels, bits, transforms, colors=known)

    def told_size(self, index: int) -> tuple[int, int] | None:
        path = self.pairs[index][1]
        return None if path is None else _size_in(JsonFile(path, constants=True, max_bytes=MAX_BYTES))

    def annotation(self, index: int) -> Annotation:
        path = self.pairs[index][1]
        assert path is not None
        file = JsonFile(path, constants=True, max_bytes=MAX_BYTES)
        height, width = _size_in(file)
        objects = file.value("the file", file.contents, "objects")
        if not isinstance(objects, list):
            file.refuse(f"its objects are {in_words(objects)}; expected a list")
        return Annotation(height, width, list(self._objects(file, objects)))

    def _objects(self, file: JsonFile, objects: list[Any]) -> Iterator[AnnotatedObject]:
        for i, entry in enumerate(objects):
            place = f"object {i}"
            label = file.text(place, entry, "classTitle")
            kind = entry.get("geometryType")
            if kind is None:  # older versions
                kind = "bitmap" if entry.get("bitmap") is not None else "polygon"
            place = f"{place}, '{label}'"
            if kind in ("polygon", "rectangle", "bitmap"):
                draw = {"polygon": _polygon, "rectangle": _rectangle, "bitmap": _bitmap}[kind]
                yield AnnotatedObject(place, label, partial(draw, entry))
            elif kind in ("line", "point"):
                points = partial(_exterior, entry)
                yield from thin_object(place, label, kind, points, self._line_width)
            else:
                yield AnnotatedObject(place, label, partial(_unknown, kind))


def _unknown(kind: object, height: int, width: int) -> Patch:
    raise DataError(f"it is {in_words(kind)}; accepted: polygon, rectangle, bitmap, and line and point with line_width")


def _size_in(file: JsonFile) -> tuple[int, int]:
    """The height and width of the image, as the file says. Raises: `DataError`."""
    size = file.value("the file", file.contents, "size")
    height, width = (file.number("its size", size, key) for key in ("height", "width"))
    return height, width


def _exterior(entry: dict[str, Any], height: int, width: int, least: int = 1, most: int | None = None) -> Any:
    points = entry.get("points")
    exterior = points.get("exterior") if isinstance(points, dict) else None
    found = np.floor(points_of(exterior, height, width, least=least, most=most))
    refuse_outside("it", found, height, width)
    return found


def _polygon(entry: dict[str, Any], height: int, width: int) -> Patch:
    exterior = _exterior(entry, height, width, 3)
    interior = entry["points"].get("interior") or []
    if not isinstance(interior, list):
        raise DataError(f"its interior is {in_words(interior)}; expected a list of holes")
    holes = []
    for i, hole in enumerate(interior):
        try:
            holes.append(np.floor(points_of(hole, height, width)).astype(np.int64))
        except DataError as error:
            raise DataError(f"its hole {i}: {error}") from None
    return opencv_patch(exterior.astype(np.int64), holes, height, width)


def _rectangle(entry: dict[str, Any], height: int, width: int) -> Patch:
    points = _exterior(entry, height, width, 2, 2).astype(np.int64)
    (left, top), (right, bottom) = points.min(axis=0).clip(0), points.max(axis=0) + 1
    mask = np.ones((max(min(bottom, height) - top, 0), max(min(right, width) - left, 0)), dtype=bool)
    return Patch.of(mask, int(top), int(left))


def _bitmap(entry: dict[str, Any], height: int, width: int) -> Patch:
    bitmap = entry.get("bitmap")
    if not isinstance(bitmap, dict) or not isinstance(bitmap.get("data"), str):
        raise DataError(f"its bitmap is {in_words(bitmap)}; expected a mapping of data, a text, and origin")
    origin = bitmap.get("origin")
    if not isinstance(origin, list) or len(origin) != 2 or not all(map(finite, origin)):
        raise DataError(f"its bitmap's origin is {in_words(origin)}; expected [x, y]")
    left, top = (round(value) for value in origin)
    mask = png_mask(bitmap["data"], height, width)
    rows, columns = mask.shape
    if left < 0 or top < 0 or top + rows > height or left + columns > width:
        raise DataError(
            f"its bitmap of {columns} x {rows} pixels at {left}, {top} reaches out of the image of {width} x {height}"
        )
    return Patch.of(mask, top, left)


def _classes(path: Path) -> dict[str, Color | None]:
    """The titles of the classes with their colours, in the file's order. Raises: `DataError`."""
    file = JsonFile(path, constants=True, max_bytes=MAX_BYTES)
    entries = file.value("the file", file.contents, "classes")
    if not isinstance(entries, list):
        file.refuse(f"its classes are {in_words(entries)}; expected a list")
    found: dict[str, Color | None] = {}
    for i, entry in enumerate(entries):
        title = file.text(f"classes[{i}]", entry, "title")
        color = entry.get("color")
        try:
            found[title] = color_of(color[1:]) if isinstance(color, str) and len(color) == 7 else None
        except ValueError:
            found[title] = None
    return found


def _data_sets(folder: Path, depth: int = 0) -> list[Path]:
    """The folders that hold `img` and `ann`, also within each other. Raises: `DataError` if there are none."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and (path.name not in PARTS_OF_ONE or not depth):
            if (path / "img").is_dir() and (path / "ann").is_dir():
                found.append(path)
            if depth < MAX_DEPTH and not path.is_symlink():
                found += _data_sets(path, depth + 1)
    if not found and not depth:
        raise DataError("has no data set: no folder with the folders img and ann", file=folder)
    return found


def _chosen(folder: Path, places: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The data sets of these names, and those within. Raises: `ConfigError` for a name that is none."""
    known = [path.relative_to(folder).as_posix() for path in places]
    for name in names:
        if not any(other == name or other.startswith(f"{name}/") for other in known):
            raise ConfigError("folders", unknown("data set", name, known))
    return [
        path
        for path, own in zip(places, known, strict=True)
        if any(own == name or own.startswith(f"{name}/") for name in names)
    ]


def _pairs(folder: Path, places: Sequence[Path]) -> list[ImageAndMask]:
    """The images of data sets with their files. Raises: `DataError` for one without the other."""
    pairs: list[ImageAndMask] = []
    unknown_images, unlabelled = [], []
    for place in places:
        images = {p.name: p for p in sorted((place / "img").iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES}
        files = {p.name.removesuffix(".json"): p for p in sorted((place / "ann").iterdir()) if p.suffix == ".json"}
        stems: dict[str, list[str]] = {}
        for name in images:
            stems.setdefault(Path(name).stem, []).append(name)
        taken = set()
        for name, file in files.items():  # older projects leave the suffix of the image out
            image = name if name in images else next(iter(stems.get(name, [])), None)
            if image is None:
                unknown_images.append(str(file))
            elif image in taken:
                raise DataError(f"{image} has two files of annotations", file=file)
            else:
                taken.add(image)
                pairs.append((images[image], file))
        unlabelled += [str(path) for name, path in images.items() if name not in taken]
    if unknown_images:
        message = (
            f"{folder}: no image for {len(unknown_images)} files of annotations: {listed(unknown_images, limit=5)}"
        )
        report_fault("missing_image", message, unknown_images)
    if unlabelled:
        message = f"{folder}: no file of annotations for {len(unlabelled)} images: {listed(unlabelled, limit=5)}"
        report_fault("missing_mask", message, unlabelled)
    return pairs


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as a project of Supervisely; None if it is none."""
    if not (folder / META).is_file():
        return None
    try:
        titles = list(_classes(folder / META))
        places = _data_sets(folder)
        pairs = _pairs(folder, places)
    except DataError as error:
        if not any(folder.glob("*/ann")):
            return None
        why = f"it has {META} and data sets as Supervisely writes them, but: {error}"
        return Found("supervisely", 0.5, why, {"root": str(folder)}, 0)
    names = {path.relative_to(folder).parts[0] for path in places}
    parts = {part: {"folders": [name]} for name in sorted(names) if (part := part_named(name)) is not None}
    why = f"{META} names {len(titles)} classes, and {len(places)} data sets have img and ann with {len(pairs)} images"
    config = {"root": str(folder), "classes": titles}
    if len(parts) == len(names) or not parts:
        return Found("supervisely", 0.95, why, config, len(pairs), parts)
    return Found("supervisely", 0.95, why, config, len(pairs), notes=(divided_anew("data sets", sorted(names)),))
