"""COCO's JSON with categories of one's own, as CVAT, Roboflow, Label Studio and others export it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from classyseg.config import MAX_CHANNELS
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.annotations.annotated_images import AnnotatedImages, no_labels, part_of
from classyseg.datasets.annotations.class_labels import BACKGROUND, Classes, ClassLabels, Order
from classyseg.datasets.annotations.drawing import segmentation_patch
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.annotations.image_files import ImageFiles, report_missing
from classyseg.datasets.annotations.patches import AnnotatedObject, Annotation
from classyseg.datasets.classy_dataset import Palette
from classyseg.datasets.files.coco_file import CocoFile
from classyseg.datasets.files.images import Bits
from classyseg.datasets.files.json_file import in_words
from classyseg.datasets.files.texts import Texts
from classyseg.datasets.recognition.roles import not_taken, one_of_each, part_named
from classyseg.datasets.splits import Split
from classyseg.errors import DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig


@DATASETS.register("coco_json")
class CocoJson(AnnotatedImages):
    """Images and one JSON file of COCO's form: polygons, and run lengths as lists or text.

    The labels are the names of the file's categories. Objects are drawn as `pycocotools` draws them. Images that the
    file names and that have no annotation are background; others in the folder are left alone.

    Args:
        root: The folder.
        annotations: The JSON file, in `root`.
        images: The folder in `root` from which the file's `file_name` is looked up.
        split: Takes a part of the images, such as `{part: train, val: 0.2}`: see key `split`.
        crowd: `label`: a crowd (`iscrowd: 1`) has the class of its label; CVAT writes all masks so. `ignore`: its
            pixels are ignored.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        annotations: str,
        images: str = ".",
        split: Split | None = None,
        classes: Classes = None,
        background: str | None = BACKGROUND,
        ignore: tuple[str, ...] = (),
        order: Order = "file",
        crowd: Literal["label", "ignore"] = "label",
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
        file = CocoFile(path, "images", "annotations", "categories", constants=True)
        names = {
            entry["id"]: file.text(place, entry, "name") for place, entry in file.entries("categories", "category")
        }
        found = _labels(file, names)
        labels = ClassLabels.of(classes, background, ignore, order, ignore_index, found=found)
        if classes is None and not found:
            raise no_labels(path)
        pictures = _images(file, ImageFiles(folder), start)
        objects = _objects(file, names, labels, pictures)
        chosen = part_of([*pictures], [picture.path for picture in pictures.values()], split, start)
        self._sizes = [pictures[number].size for number in chosen]
        self._objects = Texts(json.dumps(objects.pop(number, [])) for number in chosen)
        self._crowd = crowd
        pairs = [(pictures[number].path, path) for number in chosen]
        super().__init__(pairs, labels, palette, channels, bits, transforms)

    def annotation(self, index: int) -> Annotation:
        image = self.pairs[index][0]
        height, width = self.told_size(index) or self.shown_size(image)
        objects = [
            AnnotatedObject(
                f"annotation {number} of {image.name}, '{label}'",
                label,
                partial(segmentation_patch, segmentation),
                ignored=bool(crowd) and self._crowd == "ignore",
            )
            for number, label, crowd, segmentation in json.loads(self._objects[index])
        ]
        return Annotation(height, width, objects)


class _Picture(NamedTuple):
    """An image that the file names; `size`, height and width, is None if the file does not say it."""

    path: Path
    size: tuple[int, int] | None


def _labels(file: CocoFile, names: Mapping[int, str]) -> list[str]:
    """The labels in the order of their numbers, without the group that Roboflow writes as a category of its own."""
    used = {entry.get("category_id") for entry in file.contents["annotations"] if isinstance(entry, dict)}
    groups = {entry.get("supercategory") for entry in file.contents["categories"]}
    kept = [names[number] for number in sorted(names) if number in used or names[number] not in groups]
    return list(dict.fromkeys(kept or names.values()))


def _images(file: CocoFile, files: ImageFiles, start: Path) -> dict[int, _Picture]:
    """The images that a file names, by their numbers. Raises: `DataError`."""
    found: dict[int, _Picture] = {}
    numbers: dict[Path, int] = {}
    missing: list[str] = []
    for place, entry in file.entries("images", "image"):
        written = file.text(place, entry, "file_name")
        size = None
        if not (entry.get("height") is None and entry.get("width") is None):
            size = file.size(place, entry)
        try:
            path = files.find(written, start)
        except DataError as error:
            file.refuse(f"{place}: {error}")
        if path is None:
            missing.append(written)
            continue
        if path in numbers:
            file.refuse(f"the images {numbers[path]} and {entry['id']} are one file, {shown(written, MAX_NAME)}")
        numbers[path] = entry["id"]
        found[entry["id"]] = _Picture(path, size)
    if not found and not missing:
        file.refuse("its list 'images' is empty")
    report_missing(file.path, start, missing, len(found) + len(missing))
    return found


def _objects(
    file: CocoFile, names: Mapping[int, str], labels: ClassLabels, pictures: Mapping[int, _Picture]
) -> dict[int, list[Any]]:
    """What is annotated, by the numbers of images: number, label, whether a crowd, outlines. Raises: `DataError`."""
    known = {entry["id"] for entry in file.contents["images"]}
    found: dict[int, list[Any]] = defaultdict(list)
    for place, entry in file.entries("annotations", "annotation"):
        image = file.listed(place, entry, "image_id", known, "images")
        label = names[file.listed(place, entry, "category_id", names, "categories")]
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            file.refuse(f"{place}: its iscrowd is {in_words(crowd)}; accepted: 0 and 1")
        try:
            labels.index_of(label)
        except DataError as error:
            file.refuse(f"{place}: {error}")
        if "segmentation" not in entry:
            file.refuse(f"{place}: it has no segmentation; draw its outline, or take the annotation out")
        if image in pictures:
            found[image].append((entry["id"], label, crowd, entry["segmentation"]))
    return found


MAX_CANDIDATES = 24


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as COCO's JSON with categories of one's own; None if it has none."""
    patterns = ("*.json", "annotations/*.json", "*/_annotations.coco.json", "labels/*.json")
    candidates = [path for pattern in patterns for path in sorted(folder.glob(pattern))][:MAX_CANDIDATES]
    found = {path: file for path in candidates if (file := _coco_file(path)) is not None}
    if not found:
        return None
    by_name = {_inner(folder, path): path for path in found}
    by_part, rest = one_of_each({name: _part_of(folder, path) for name, path in by_name.items()})
    parts = {part: _keys(folder, by_name[name], found[by_name[name]]) for part, name in by_part.items()}
    path = by_name[next(iter(by_part.values()), next(iter(by_name)))]
    rest = [name for name in rest if by_name[name] != path]
    file = found[path]
    names = {entry["id"]: entry["name"] for entry in file.contents["categories"]}
    labels = _labels(file, names)
    outlined = sum(bool(entry.get("segmentation")) for entry in file.contents["annotations"])
    total = len(file.contents["annotations"])
    why = f"{_inner(folder, path)} has {total:,} annotations of {len(labels)} categories as COCO writes them"
    sure = 0.95
    if outlined < total:
        why += f"; {total - outlined:,} of them are boxes without an outline, which are an error"
        sure = 0.6 if outlined else 0.2
    config = {"root": str(folder), **_keys(folder, path, file), "classes": labels}
    return Found("coco_json", sure, why, config, len(file.contents["images"]), parts, not_taken(rest))


def _part_of(folder: Path, path: Path) -> str | None:
    return part_named(path.stem) or part_named(path.parent.relative_to(folder).as_posix())


def _coco_file(path: Path) -> CocoFile | None:
    """A file that has COCO's lists, and in them what they must have; None for any other."""
    try:
        file = CocoFile(path, "images", "annotations", "categories", constants=True)
        for place, entry in file.entries("categories", "category"):
            file.text(place, entry, "name")
        for place, entry in file.entries("images", "image"):
            file.text(place, entry, "file_name")
        if not all(isinstance(entry, dict) for entry in file.contents["annotations"]):
            return None
    except DataError:
        return None
    return file if file.contents["categories"] and file.contents["images"] else None


def _keys(folder: Path, path: Path, file: CocoFile) -> dict[str, Any]:
    """The keys `annotations` and `images` of a file, whose first image is looked for."""
    written = file.contents["images"][0]["file_name"]
    files = ImageFiles(folder)
    words = [path.parent.name, part_named(path.stem) or "", path.stem.removeprefix("instances_"), path.stem]
    places = [folder, path.parent, folder / "images", *(folder / base / w for base in ("", "images") for w in words)]
    for place in places:
        try:
            if place.is_dir() and files.find(written, place) is not None:
                return {"annotations": _inner(folder, path), "images": place.relative_to(folder).as_posix()}
        except DataError:
            continue
    return {"annotations": _inner(folder, path), "images": path.parent.relative_to(folder).as_posix()}


def _inner(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
