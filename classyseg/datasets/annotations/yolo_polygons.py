"""YOLO's polygons: a text file for each image, a line for each object, as Ultralytics reads them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

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
from classyseg.datasets.recognition.roles import part_named, part_of
from classyseg.datasets.splits import Split, SplitConfig, name_key, named_split, take_part
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
TOLERANCE = 0.01
"""Coordinates may lie outside of 0 to 1 by so much, as in Ultralytics."""
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
MAX_OBJECTS = 100_000
Pair = tuple[Path, Path | None]
Place = tuple[str, str]
"""A key of the file `data`, and the folder or the list of images that stands there."""
Boxes = Literal["error", "draw"]
"""The type of the key `boxes`."""


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
        boxes: What becomes of a line of four numbers, which is a box. `error`: name it. `draw`: fill the box.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        data: str = "data.yaml",
        split: Split | None = None,
        boxes: Boxes = "error",
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
        self._boxes = boxes
        if named_split(split) is None and (missing := described.missing_test()):
            log.warning("%s; the part is left out", missing)
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
                label, points = _parsed(line, self._boxes)
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


class _BoxError(DataError):
    """A line is a box."""


def _parsed(line: str, boxes: Boxes = "error") -> tuple[int, npt.NDArray[np.float32]]:
    """The number of the label and the points (N, 2) of a line. Raises: `DataError`."""
    words = line.split()
    wrong = [word for word in words if not NUMBER.fullmatch(word)]
    if wrong:
        raise DataError(f"has {shown(wrong[0])} among its numbers; expected a label and x, y of each point")
    label = float(words[0])
    if not 0 <= label < MAX_OBJECTS or label != int(label):
        raise DataError(f"its label is {words[0]}; expected a whole number, 0 or more")
    if len(words) == 5 and boxes == "error":
        raise _BoxError(
            "is a box of 4 numbers, not a polygon; draw outlines, and export them for segmentation, or set boxes: draw "
            "to fill boxes"
        )
    if len(words) % 2 == 0 or len(words) < 5:
        raise DataError(f"has {len(words) - 1} numbers after its label; expected x and y of three points or more")
    points = np.array(words[1:], dtype=np.float32).reshape(-1, 2)
    if len(points) == 2:  # the middle of a box, its width and height
        points = (points[0] + np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * points[1]).astype(
            np.float32
        )
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

    def __init__(self, folder: Path, file: Path, names: Sequence[str], places: Mapping[str, Sequence[Place]]) -> None:
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
        for part in self.parts() if split is None else (split,):
            for named, written in self.places[part]:
                place = self._place(named, written)
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

    def parts(self) -> list[str]:
        """The parts that are taken where none is named: `test` only if it is there."""
        return [part for part in self.places if part != "test" or not self.missing_test()]

    def missing_test(self) -> str:
        """What is wrong with a part `test` that is not there; empty where it is there, or is the only part.

        Some tools name it in every file.
        """
        try:
            for key, written in self.places.get("test", ()) if len(self.places) > 1 else ():
                self._place(key, written)
        except DataError as error:
            return str(error)
        return ""

    def _place(self, key: str, written: str) -> Path:
        """The folder or the list of a part. Raises: `DataError` where there is none in the data set's folder."""
        # Roboflow writes ../train/images for the folder that lies next to the file.
        for base in dict.fromkeys((self.base, self.folder)):
            for name in (written, written.removeprefix("../")):
                if self._files.holds(base, name) and (base / name).exists():
                    return base / name
        raise DataError(
            f"its '{key}' is {shown(written, MAX_NAME)}, which is not in {self.folder}; write it relative to that "
            "folder",
            file=self.file,
        )

    def _listed(self, place: Path) -> Iterator[Path]:
        """The images that a text file names, a line each."""
        lines = lines_of(place)
        missing = []
        for number, line in lines:
            name = line.strip()
            start = place.parent if name.startswith("./") else self.base
            try:
                # CVAT writes data/ before each path: Darknet wants the data set in a folder of that name.
                found = (self._files.find(each, start) for each in dict.fromkeys((name, name.removeprefix("data/"))))
                path = next((each for each in found if each is not None), None)
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
        names = [line.strip() for _, line in lines_of(path)]
        return _Described(folder, path, names, {"images": [("images", "images")]})
    values = _values(path)
    if _has_key_points(values):
        raise DataError(
            "it has kpt_shape, so its label files hold key points (pose), not outlines; export the outlines for "
            "segmentation",
            file=path,
        )
    places = _places(path, values)
    if not places:
        raise DataError("names no images: it has neither train nor val nor test", file=path)
    described = _Described(folder, path, _names(path, values), places)
    inner = values.get("path")
    if isinstance(inner, str) and described._files.holds(folder, inner) and (folder / inner).is_dir():
        described.base = folder / inner
    return described


def _values(path: Path) -> Mapping[Any, Any]:
    """The contents of a data set's YAML. Raises: `DataError`."""
    try:
        return load_config(path).values
    except DataError:
        raise
    except ConfigError as error:
        raise DataError(f"cannot be read as a data set's YAML ({error.without(path)})", file=path) from None


def _has_key_points(values: Mapping[Any, Any]) -> bool:
    return values.get("kpt_shape") is not None


def _places(path: Path, values: Mapping[Any, Any]) -> dict[str, list[Place]]:
    """The places of each part: under `train`, `val`, `test`, or else under a key that means it. Raises: `DataError`.

    CVAT writes the names of its own subsets: `Train: Train.txt`, `Validation: Validation.txt`.
    """
    places: dict[str, list[Place]] = {}
    for part in PARTS:
        for key in [part] if part in values else [key for key in map(str, values) if part_named(key) == part]:
            found = values.get(key)
            entries = found if isinstance(found, list) else [] if found is None else [found]
            are_texts = all(isinstance(entry, str) and entry for entry in entries)
            if part_of(key) is None and not (are_texts and all(entry.endswith(".txt") for entry in entries)):
                continue  # such as val_split: 0.2
            if not are_texts:
                raise DataError(
                    f"its '{key}' is {shown(found)}; expected a folder, a text file, or a list of them", file=path
                )
            if entries:
                places.setdefault(part, []).extend((key, entry) for entry in entries)
    return places


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


# -- recognition -------------------------------------------------------------------------------------------------------

MAX_SAMPLED = 50


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as YOLO's polygons; None if it is something else."""
    doubtful = None
    for path in [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*.yml")), folder / "classes.txt"]:
        if not path.is_file() or (path.suffix == ".txt" and not (folder / "labels").is_dir()):
            continue
        try:
            return _found(_described(folder, path.name))
        except (ConfigError, DataError) as error:
            doubtful = doubtful or _doubtful(folder, path, error)
    return doubtful


def _doubtful(folder: Path, path: Path, error: ConfigError) -> Found | None:
    """A data set of YOLO that cannot be read; None where the file may be any other one."""
    try:
        values = {} if path.suffix == ".txt" else _values(path)
    except DataError:
        return None
    if "names" not in values or not any(part_of(str(key)) in ("train", "val") for key in values):
        return None
    why = f"{path.name} is that of a data set of YOLO, but: {error.without(path)}"
    sure = 0.3 if _has_key_points(values) else 0.5
    return Found("yolo_polygons", sure, why, {"root": str(folder), "data": path.name}, 0)


def _found(described: _Described) -> Found:
    """A data set of YOLO, and what its label files hold. Raises: `DataError`."""
    pairs = described.pairs(None)
    path, names = described.file, described.names
    labels = [label for _, label in pairs if label is not None]
    polygons, boxes = _counted(labels[:: max(len(labels) // MAX_SAMPLED, 1)][:MAX_SAMPLED])
    sure, kind = (0.95, "polygons") if polygons else (0.5, "empty label files")
    if boxes and polygons:
        sure = 0.8
        kind += f", but {boxes} of the {polygons + boxes} lines looked at are boxes, which are an error: draw outlines"
        kind += " in their place, or set boxes: draw, which fills boxes"
    elif boxes:
        sure, kind = 0.3, "boxes, not outlines: draw outlines, and export them for segmentation"
    why = f"{path.name} names {len(names)} labels, and {len(labels)} of {len(pairs)} images have {kind}"
    config = {"root": str(described.folder), "data": path.name, "classes": list(names)}
    parts = {} if path.suffix == ".txt" else {part: {"split": part} for part in described.parts()}
    missing = described.missing_test()
    notes = (f"{missing}; the part is left out",) if missing else ()
    return Found("yolo_polygons", sure, why, config, len(pairs), parts, notes)


def _counted(labels: Sequence[Path]) -> tuple[int, int]:
    """How many lines of label files are polygons, and how many boxes. Raises: `DataError` for any other one."""
    polygons = boxes = 0
    for file in labels:
        for number, line in islice(lines_of(file), MAX_SAMPLED):
            try:
                _parsed(line)
                polygons += 1
            except _BoxError:
                boxes += 1
            except DataError as error:
                raise DataError(f"line {number}: {error}", file=file) from None
    return polygons, boxes
