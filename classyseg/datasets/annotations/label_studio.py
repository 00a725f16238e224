"""Label Studio's exports: JSON with brushes, polygons, rectangles and ellipses, and brushes as PNG files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from classyseg.config import MAX_CHANNELS, listed
from classyseg.console import MAX_NAME, printable, shown
from classyseg.datasets.annotations.annotated_images import AnnotatedImages, no_labels
from classyseg.datasets.annotations.brush_lengths import BRUSH_FILE, brush_mask
from classyseg.datasets.annotations.class_labels import BACKGROUND, Classes, ClassLabels, Order
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.annotations.image_files import ImageFiles, report_missing
from classyseg.datasets.annotations.label_studio_file import (
    Region,
    Several,
    dumped,
    find_image,
    group_name,
    loaded,
    number_of,
    read_images,
    read_tasks,
)
from classyseg.datasets.annotations.patches import NO_PIXELS, AnnotatedObject, Annotation, Patch
from classyseg.datasets.classy_dataset import Palette
from classyseg.datasets.files.images import Bits, read_mask_values
from classyseg.datasets.files.json_file import in_words
from classyseg.datasets.files.outlines import annotation_mask
from classyseg.datasets.files.texts import Texts
from classyseg.datasets.splits import SplitConfig, indices_of_part, refuse_of
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

MAX_LOOKED_AT = 20
"""JSON files of a folder that may be exports."""


@DATASETS.register("label_studio")
class LabelStudio(AnnotatedImages):
    """Label Studio's export as JSON or JSON-MIN, or its brushes as PNG, with the images in a folder.

    Exports hold no images. That of a task is looked for in the folder `images` by its path as the export has it
    (uploads, local files, S3 and other addresses), then without its first folders, one after the other, at last by its
    name alone, and without the eight signs that Label Studio puts before the name of an uploaded file.

    Tasks that nobody has annotated are left out, cancelled annotations do not count, and of several annotations of a
    task the ground truth does. Polygons and rectangles are drawn as `pycocotools` draws them; an ellipse has the pixels
    whose centres lie in it. Points, and what is said of whole images, are passed over.

    Args:
        root: The folder.
        annotations: The JSON file in `root`. With `brushes`, that file, or a table `.csv` with the columns `task` and
            `image`: the number of each task, and its image.
        images: The folder of the images in `root`.
        brushes: The folder in `root` of the export "Brush labels to PNG": `task-3-annotation-3-by-1-tag-car-0.png`. Its
            regions count in place of those of the JSON file. Their names end with the label, where `/` became `-`;
            without `classes`, a label is what follows the first `-` of tag and label.
        image_key: The key of the image in the data of a task; null: `image`, or the only one that names an image.
        several: If a task has several annotations, and not one ground truth. `error`: name it. `newest`: take the one
            that was changed last.
        split: A mapping that takes a part of the images, such as `{part: train, val: 0.2}`: see key `split`.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        annotations: str,
        images: str = ".",
        brushes: str | None = None,
        image_key: str | None = None,
        several: Several = "error",
        split: SplitConfig | None = None,
        classes: Classes = None,
        background: str | None = BACKGROUND,
        ignore: tuple[str, ...] = (),
        order: Order = "file",
        ignore_index: int = 255,
        palette: Palette | None = None,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        bits: Bits = 8,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
        with within("images"):
            start = data_folder(str(folder / images))
        path = folder / annotations
        known = [label for labels in _mapped(classes).values() for label in labels] + list(ignore)
        if brushes is None:
            tasks = [task for task in read_tasks(path, image_key, several) if task.regions is not None]
            named = {task.number: task.image for task in tasks}
            regions = {task.number: task.regions or [] for task in tasks}
            sizes = {task.number: task.size for task in tasks}
        else:
            with within("brushes"):
                brush_folder = data_folder(str(folder / brushes))
            named, sizes = read_images(path, image_key), {}
            regions = _brush_files(brush_folder, known, several, named, path)
            named = {number: image for number, image in named.items() if number in regions}
        if not named:
            raise DataError("names no task that somebody has annotated", file=path)
        found = _found_images(named, ImageFiles(folder), start, path)
        if split is not None:
            refuse_of(split)
            chosen = indices_of_part([group_name(image, start) for image in found.values()], split, start)
            found = dict(list(found.items())[i] for i in chosen)
        used = sorted({region.label for each in regions.values() for region in each})
        labels = ClassLabels.of(classes, background, ignore, order, ignore_index, found=used)
        if classes is None and not used:
            raise no_labels(path)
        _check_labels(labels, regions.values(), path)
        self._numbers = list(found)
        self._sizes = [sizes.get(number) for number in found]
        self._regions = Texts(dumped(regions[number]) for number in found)
        super().__init__([(image, path) for image in found.values()], labels, palette, channels, bits, transforms)

    def annotation(self, index: int) -> Annotation:
        image = self.pairs[index][0]
        height, width = self.told_size(index) or self.shown_size(image)
        regions = loaded(self._regions[index])
        objects = [
            AnnotatedObject(f"{region.place} of {image.name}, '{region.label}'", region.label, partial(_drawn, region))
            for region in regions
        ]
        return Annotation(height, width, objects)

    def files(self, index: int) -> tuple[Path, ...]:
        brushes = [Path(region.value["file"]) for region in loaded(self._regions[index]) if region.shape == "file"]
        return (*super().files(index), *brushes)


def _mapped(classes: Classes) -> Mapping[str, Sequence[str]]:
    return classes if isinstance(classes, Mapping) else {name: (name,) for name in classes or ()}


def _check_labels(labels: ClassLabels, regions: Iterable[list[Region]], path: Path) -> None:
    """Raises: `DataError` for a label that no key names."""
    for region in (region for each in regions for region in each):
        try:
            labels.index_of(region.label)
        except DataError as error:
            raise DataError(f"{region.place}: {error}", file=path) from None


def _found_images(named: Mapping[int, str], files: ImageFiles, start: Path, path: Path) -> dict[int, Path]:
    """The image file of each task. Raises: `DataError`."""
    found: dict[int, Path] = {}
    owners: dict[Path, int] = {}
    missing = []
    for number, written in named.items():
        try:
            image = find_image(written, files, start)
        except DataError as error:
            raise DataError(f"task {number}: {error}", file=path) from None
        if image is None:
            missing.append(written)
            continue
        if image in owners:
            raise DataError(f"the tasks {owners[image]} and {number} are one file, {shown(image.name)}", file=path)
        owners[image] = number
        found[number] = image
    report_missing(path, start, missing, len(named))
    return found


# -- drawing -----------------------------------------------------------------------------------------------------------


def _drawn(region: Region, height: int, width: int) -> Patch:
    """The pixels of a region. Raises: `DataError`, without its place."""
    value = region.value
    if region.shape == "file":
        return _brush_patch(Path(value["file"]), height, width)
    if region.shape == "brush":
        return Patch.of(brush_mask(value["rle"], height, width))
    if region.shape == "ellipse":
        return _ellipse(value, height, width)
    points = _points(value, height, width) if region.shape == "polygon" else _corners(value, height, width)
    x, y = points[0::2], points[1::2]
    if max(x) < 0 or min(x) > width or max(y) < 0 or min(y) > height:
        raise DataError(f"its {region.shape} lies outside the image of {width} x {height} pixels")
    return Patch.of(annotation_mask([points], height, width).mask)


def _points(value: Mapping[str, Any], height: int, width: int) -> list[float]:
    """The points of a polygon, x and y in turn, in pixels."""
    found = value["points"]
    if not isinstance(found, list) or not all(isinstance(point, list) and len(point) == 2 for point in found):
        raise DataError(f"its points are {in_words(found)}; expected a list of [x, y]")
    points = [number_of({"point": each}, "point") for point in found for each in point]
    return [part * side / 100 for part, side in zip(points, (width, height) * len(found), strict=True)]


def _corners(value: Mapping[str, Any], height: int, width: int) -> list[float]:
    """The corners of a rectangle, which is turned around its first one."""
    x, wide = (number_of(value, key) * width / 100 for key in ("x", "width"))
    y, high = (number_of(value, key) * height / 100 for key in ("y", "height"))
    angle = math.radians(number_of(value, "rotation", 0))
    cos, sin = (round(each, 12) for each in (math.cos(angle), math.sin(angle)))
    right, down = (wide * cos, wide * sin), (-high * sin, high * cos)
    return [x, y, x + right[0], y + right[1], x + right[0] + down[0], y + right[1] + down[1], x + down[0], y + down[1]]


def _ellipse(value: Mapping[str, Any], height: int, width: int) -> Patch:
    """The pixels whose centres lie in an ellipse, which is turned around its own centre."""
    x, wide = (number_of(value, key) * width / 100 for key in ("x", "radiusX"))
    y, high = (number_of(value, key) * height / 100 for key in ("y", "radiusY"))
    if wide <= 0 or high <= 0:
        raise DataError(f"its radii are {wide:g} and {high:g} pixels; expected more than 0")
    reach = max(wide, high)
    left, right = (int(min(max(each, 0), width)) for each in (x - reach, x + reach + 1))
    top, bottom = (int(min(max(each, 0), height)) for each in (y - reach, y + reach + 1))
    if left >= right or top >= bottom:
        raise DataError(f"its ellipse lies outside the image of {width} x {height} pixels")
    angle = math.radians(number_of(value, "rotation", 0))
    across, down = np.arange(left, right) + 0.5 - x, (np.arange(top, bottom) + 0.5 - y)[:, None]
    one = (across * math.cos(angle) + down * math.sin(angle)) / wide
    two = (down * math.cos(angle) - across * math.sin(angle)) / high
    return Patch.of(one**2 + two**2 <= 1, top, left)


def _brush_patch(path: Path, height: int, width: int) -> Patch:
    values = read_mask_values(path)
    if values.shape != (height, width):
        found = f"{values.shape[1]} x {values.shape[0]}"
        raise DataError(f"{path} is {found} pixels, its image {width} x {height}; they must be of one size")
    return Patch.of(values != 0) if values.size else NO_PIXELS


# -- brushes as files --------------------------------------------------------------------------------------------------


def _brush_files(
    folder: Path, known: Sequence[str], several: Several, images: Mapping[int, str], path: Path
) -> dict[int, list[Region]]:
    """The brushes of each task. Raises: `DataError` for a file that no task, and no label of the config, fits."""
    found: dict[int, dict[int, list[Region]]] = {}
    in_names = {label.replace("/", "-").replace("\\", "-"): label for label in known}
    for file in sorted(folder.glob("*.png"), key=_order):
        match = BRUSH_FILE.fullmatch(file.name)
        if match is None:
            continue
        task, annotation, rest = int(match[1]), int(match[2]), match[4]
        if task not in images:
            raise DataError(f"{path}: does not say which image task {task} of {file.name} has")
        ends = [name for name in in_names if rest.endswith(f"-{name}")]
        label = in_names[max(ends, key=len)] if ends else rest.partition("-")[2] or rest
        region = Region(printable(file.name, MAX_NAME, exact=True), label, "file", {"file": str(file)})
        found.setdefault(task, {}).setdefault(annotation, []).append(region)
    if not found:
        raise DataError(f"{folder}: found no file such as task-3-annotation-3-by-1-tag-car-0.png")
    for task, made in found.items():
        if len(made) > 1 and several == "error":
            told = listed([str(number) for number in made])
            raise DataError(f"{folder}: task {task} has the annotations {told}; set several: newest, or remove some")
    return {task: made[max(made)] for task, made in found.items()}


def _order(path: Path) -> tuple[str, int]:
    match = BRUSH_FILE.fullmatch(path.name)
    return (path.name[: match.start(5)], int(match[5])) if match else (path.name, 0)


# -- recognition -------------------------------------------------------------------------------------------------------


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as an export of Label Studio; None if it is none."""
    for path in sorted(folder.glob("*.json"))[:MAX_LOOKED_AT]:
        if _begins_as_export(path):
            return _found_json(folder, path)
    brushes = sum(BRUSH_FILE.fullmatch(path.name) is not None for path in folder.glob("*.png"))
    if brushes:
        why = (
            f"it has {brushes} brushes of Label Studio; their names do not say which images they belong to: the export "
            "as JSON is needed, or a table with the columns task and image"
        )
        return Found("label_studio", 0.4, why, {"root": str(folder), "brushes": "."}, 0)
    return None


def _begins_as_export(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(2**16).lstrip()
    except OSError:
        return False
    words = (b'"annotations"', b'"completed_by"'), (b'"original_width"', b'"id"'), (b'"file_upload"',)
    return start[:1] == b"[" and any(all(word in start for word in each) for each in words)


def _found_json(folder: Path, path: Path) -> Found | None:
    config: dict[str, Any] = {"root": str(folder), "annotations": path.name}
    try:
        tasks = [task for task in read_tasks(path, None, "newest") if task.regions is not None]
    except DataError as error:
        return Found("label_studio", 0.4, f"{path.name} begins as an export of Label Studio, but: {error}", config, 0)
    notes: tuple[str, ...] = ()
    try:
        read_tasks(path, None, "error")
    except DataError as error:
        config["several"] = "newest"
        notes = (f"{error}; the newest annotation is taken",)
    labels = sorted({region.label for task in tasks for region in task.regions or ()})
    config["classes"] = labels
    starts = [folder, *sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))]
    for start in starts:
        try:
            images = [find_image(task.image, ImageFiles(folder), start) for task in tasks]
        except (ConfigError, DataError):
            continue
        if tasks and None not in images:
            if start != folder:
                config["images"] = start.name
            why = f"{path.name} has {len(tasks)} annotated tasks of Label Studio, whose images are in {start.name}"
            return Found("label_studio", 0.95, why, config, len(tasks), notes=notes)
    why = (
        f"{path.name} has {len(tasks)} annotated tasks of Label Studio; not all of their images are there: put them in"
    )
    return Found("label_studio", 0.8, why, config, len(tasks))
