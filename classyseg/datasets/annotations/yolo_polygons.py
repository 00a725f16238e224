"""YOLO's polygons: a text file for each image, a line for each object, as Ultralytics reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from classyseg.config import MAX_CHANNELS, listed, load_config
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.annotations.annotated_images import AnnotatedImages
from classyseg.datasets.annotations.class_labels import BACKGROUND, Classes, ClassLabels, Order
from classyseg.datasets.annotations.drawing import opencv_patch
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.annotations.image_files import ImageFiles, report_missing
from classyseg.datasets.annotations.patches import AnnotatedObject, Annotation, Patch
from classyseg.datasets.classy_dataset import Palette
from classyseg.datasets.files.images import IMAGE_SUFFIXES, Bits
from classyseg.datasets.files.lists import lines_of
from classyseg.datasets.files.pairs import files_by_name, report_fault
from classyseg.datasets.splits import Split, SplitConfig, name_key, named_split, take_part
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

PARTS = ("train", "val", "test")
TOLERANCE = 0.01
"""Coordinates may lie outside of 0 to 1 by so much, as in Ultralytics."""
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
MAX_OBJECTS = 100_000
Pair = tuple[Path, Path | None]


@DATASETS.register("yolo_polygons")
class YoloPolygons(AnnotatedImages):
    """Images with YOLO's label files of polygons: `images/train/a.jpg` has `labels/train/a.txt`.

    A line is the number of a label and x, y of each point, divided by the width and the height. The file `data` names
    the labels, and where the images lie. Polygons are drawn as Ultralytics draws them for its semantic task, at the
    size of the image. An image without a label file, or with an empty one, is background.

    Args:
        root: The folder.
        data: The data set's YAML in `root`, or a text file with a label a line, such as `classes.txt`: its images are
            those in `root/images`.
        split: The part of the YAML that is taken: `train`, `val` or `test`; null: all images that it names. Or a
            part of all images, such as `{part: train, val: 0.2}`, or of one part: `{part: train, val: 0.2, of: train}`;
            see key `split`.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        data: str = "data.yaml",
        split: Split | None = None,
        classes: Classes = None,
        background: str | None = BACKGROUND,
        ignore: tuple[str, ...] = (),
        order: Order = "area",
        ignore_index: int = 255,
        palette: Palette | None = None,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        bits: Bits = 8,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
        described = _described(folder, data)
        labels = ClassLabels.of(classes, background, ignore, order, ignore_index, found=described.names)
        self._names = described.names
        self._source = folder / data
        pairs = described.pairs(named_split(split), name_key(split))
        if isinstance(split, SplitConfig):
            pairs = take_part(pairs, [image for image, _ in pairs], split, folder)
        super().__init__(pairs, labels, palette, channels, bits, transforms)

    def annotation(self, index: int) -> Annotation:
        image, file = self.pairs[index]
        height, width = self.shown_size(image)
        return Annotation(height, width, [] if file is None else list(self._objects(file)))

    def _objects(self, file: Path) -> Iterator[AnnotatedObject]:
        lines = lines_of(file)
        if len(lines) > MAX_OBJECTS:
            raise DataError(f"has {len(lines):,} lines; up to {MAX_OBJECTS:,} are read", file=file)
        for number, line in lines:
            place = f"line {number}"
            try:
                label, points = _parsed(line)
            except DataError as error:
                raise DataError(f"{place}: {error}", file=file) from None
            if label >= len(self._names):
                raise DataError(
                    f"{place}: its label is {label}, but {self._source} names {len(self._names)}: 0 to "
                    f"{len(self._names) - 1}",
                    file=file,
                )
            name = self._names[label]
            yield AnnotatedObject(f"{place}, '{name}'", name, partial(_drawn, points))


def _parsed(line: str) -> tuple[int, npt.NDArray[np.float32]]:
    """The number of the label and the points (N, 2) of a line. Raises: `DataError`."""
    words = line.split()
    wrong = [word for word in words if not NUMBER.fullmatch(word)]
    if wrong:
        raise DataError(f"has {shown(wrong[0])} among its numbers; expected a label and x, y of each point")
    label = float(words[0])
    if not 0 <= label < MAX_OBJECTS or label != int(label):
        raise DataError(f"its label is {words[0]}; expected a whole number, 0 or more")
    if len(words) == 5:
        raise DataError("is a box of 4 numbers, not a polygon; draw outlines, and export them for segmentation")
    if len(words) % 2 == 0 or len(words) < 7:
        raise DataError(f"has {len(words) - 1} numbers after its label; expected x and y of three points or more")
    points = np.array(words[1:], dtype=np.float32).reshape(-1, 2)
    beyond = points[~((points >= -TOLERANCE) & (points <= 1 + TOLERANCE))]
    if beyond.size:
        raise DataError(
            f"has the coordinate {beyond[0]:g}, outside of the image: x is divided by its width, y by its height, so "
            "that they are 0 to 1"
        )
    return int(label), points


def _drawn(points: npt.NDArray[np.float32], height: int, width: int) -> Patch:
    # As Ultralytics: in float32, and cut off to whole pixels.
    return opencv_patch((points * np.array([width, height], dtype=np.float32)).astype(np.int64), (), height, width)


class _Described:
    """What the file `data` says: the names of the labels by number, and for each part the places of its images."""

    def __init__(self, folder: Path, file: Path, names: Sequence[str], places: Mapping[str, Sequence[str]]) -> None:
        self.folder, self.file, self.names, self.places = folder, file, tuple(names), places
        self._files = ImageFiles(folder)
        self.base = folder

    def pairs(self, split: str | None, key: str = "split") -> list[Pair]:
        """The images of a part, each with its label file. Raises: `ConfigError` for a part that is not there."""
        if split is not None and split not in self.places:
            known = f"it has {', '.join(self.places)}" if self.places else "it has no parts; leave it out"
            raise ConfigError(key, f"found {split}, which {self.file} does not name; {known}")
        images: dict[Path, None] = {}
        folders: list[Path] = []
        for part in self.places if split is None else (split,):
            for written in self.places[part]:
                place = self._place(part, written)
                if place.is_dir():
                    images |= dict.fromkeys(files_by_name(place, IMAGE_SUFFIXES, "image", nested=True).values())
                    folders.append(place)
                else:
                    images |= dict.fromkeys(self._listed(place))
        labels = [self._label_file(image) for image in images]
        self._report_alone(folders, {*labels})
        if labels and not any(label.is_file() for label in labels):
            raise DataError(f"no label file for any of its {len(labels)} images; {labels[0]} is one", file=self.file)
        return [(image, label if label.is_file() else None) for image, label in zip(images, labels, strict=True)]

    def _place(self, part: str, written: str) -> Path:
        """The folder or the list of a part. Raises: `DataError` where there is none in the data set's folder."""
        # Roboflow writes ../train/images for the folder that lies next to the file.
        for base in dict.fromkeys((self.base, self.folder)):
            for name in (written, written.removeprefix("../")):
                if self._files.holds(base, name) and (base / name).exists():
                    return base / name
        raise DataError(
            f"its '{part}' is {shown(written, MAX_NAME)}, which is not in {self.folder}; write it relative to that "
            "folder",
            file=self.file,
        )

    def _listed(self, place: Path) -> Iterator[Path]:
        """The images that a text file names, a line each."""
        lines = lines_of(place)
        missing = []
        for number, line in lines:
            name = line.strip()
            try:
                path = self._files.find(name, place.parent if name.startswith("./") else self.base)
            except DataError as error:
                raise DataError(f"line {number}: {error}", file=place) from None
            if path is None:
                missing.append(name)
            else:
                yield path
        report_missing(place, self.base, missing, len(lines))

    def _label_file(self, image: Path) -> Path:
        """As Ultralytics: the last folder `images` of the path becomes `labels`; without one, it lies by the image."""
        parts = list(image.relative_to(self.folder).parts)
        if "images" in parts[:-1]:
            parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
        return self.folder.joinpath(*parts).with_suffix(".txt")

    def _report_alone(self, folders: Sequence[Path], known: set[Path]) -> None:
        """Notes label files without an image. Raises: `DataError` unless faults are collected."""
        places = {self._label_file(folder / "a.jpg").parent for folder in folders} - {*folders}
        alone = [str(p) for place in sorted(places) for p in sorted(place.rglob("*.txt")) if p not in known]
        if alone:
            message = f"{self.file}: no image for {len(alone)} label files: {listed(alone, limit=5)}"
            report_fault("missing_image", message, alone)


def _described(folder: Path, data: str) -> _Described:
    """Reads the file `data`. Raises: `DataError`."""
    path = folder / data
    if path.suffix == ".txt":
        return _Described(folder, path, [line.strip() for _, line in lines_of(path)], {"images": ["images"]})
    try:
        values = load_config(path).values
    except DataError:
        raise
    except ConfigError as error:
        raise DataError(f"cannot be read as a data set's YAML ({error.without(path)})", file=path) from None
    places: dict[str, list[str]] = {}
    for part in PARTS:
        found = values.get(part, values.get("validation") if part == "val" else None)
        entries = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(entry, str) and entry for entry in entries):
            raise DataError(
                f"its '{part}' is {shown(found)}; expected a folder, a text file, or a list of them", file=path
            )
        if entries:
            places[part] = entries
    if not places:
        raise DataError("names no images: it has neither train nor val nor test", file=path)
    described = _Described(folder, path, _names(path, values), places)
    inner = values.get("path")
    if isinstance(inner, str) and described._files.holds(folder, inner) and (folder / inner).is_dir():
        described.base = folder / inner
    return described


def _names(path: Path, values: Mapping[str, Any]) -> list[str]:
    """The names of the labels by number: a list, or a mapping of all numbers. Raises: `DataError`."""
    names = values.get("names")
    if names is None and isinstance(values.get("nc"), int) and 0 < values["nc"] <= MAX_OBJECTS:
        return [f"class_{i}" for i in range(values["nc"])]
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(
                f"its 'names' has the numbers {shown([*names])}; expected 0, 1, ... without a gap", file=path
            )
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"its 'names' is {shown(names)}; expected a list of names, or {{0: name, 1: name}}", file=path)
    return [str(name) for name in names]


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as YOLO's polygons; None if it is something else, such as boxes alone."""
    candidates = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*.yml")), folder / "classes.txt"]
    for path in candidates:
        if not path.is_file() or (path.suffix == ".txt" and not (folder / "labels").is_dir()):
            continue
        try:
            described = _described(folder, path.name)
            pairs = described.pairs(None)
        except (ConfigError, DataError):
            continue
        labels = [label for _, label in pairs if label is not None]
        kind = _kind_of(labels[:: max(len(labels) // MAX_SAMPLED, 1)][:MAX_SAMPLED])
        if kind is None:
            return None
        config = {"root": str(folder), "data": path.name, "classes": list(described.names)}
        parts = {} if path.suffix == ".txt" else {part: {"split": part} for part in described.places}
        why = f"{path.name} names {len(described.names)} labels, and {len(labels)} of {len(pairs)} images have {kind}"
        return Found("yolo_polygons", 0.95 if kind == "polygons" else 0.5, why, config, len(pairs), parts)
    return None


MAX_SAMPLED = 50


def _kind_of(labels: Sequence[Path]) -> str | None:
    """What label files hold: polygons, nothing at all, or None for boxes and other lines."""
    seen = 0
    for file in labels:
        try:
            for _, line in islice(lines_of(file), MAX_SAMPLED):
                _parsed(line)
                seen += 1
        except DataError:
            return None
    return "polygons" if seen else "empty label files"
